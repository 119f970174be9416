"""What was done and what was refused: events in chains that show any later change."""
