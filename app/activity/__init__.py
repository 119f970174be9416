"""What keys were used for, and which workers accept them."""
