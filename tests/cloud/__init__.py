"""What only an account on Modal can show; skipped without a token."""
