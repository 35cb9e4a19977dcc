"""What a process looks like to each step: as if no other had been there before."""
