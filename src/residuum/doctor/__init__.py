"""What a report of a fault has to say of an installation and its machine, and what is wrong with them."""
