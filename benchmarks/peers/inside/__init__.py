"""What runs in a system's own environment; of this project it imports nothing but its neighbours here."""
