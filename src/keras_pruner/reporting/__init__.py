"""What is shown: tables in a terminal, pages in a browser."""
