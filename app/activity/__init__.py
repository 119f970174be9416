"""What keys were used for, which workers accept them, and what each worker does for retention."""
