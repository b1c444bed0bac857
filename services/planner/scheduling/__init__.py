"""How the cases of a plan are executed: dispatching, attempts, pace, budget and early stop."""
