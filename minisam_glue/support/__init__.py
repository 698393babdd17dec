"""Parts that every room uses and no paper describes: whole files, checked values, printable text, caches, processes."""
