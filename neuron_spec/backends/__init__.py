"""What the method runs on; one folder per library."""
