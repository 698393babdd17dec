"""What every room uses and no paper describes: whole files, checked values, printable text, a cache, this process."""
