"""What reports share: tables, charts, and the one page that holds them."""
