"""What more learners bring, and what they cost: measured on this machine, and by simulation beyond it."""
