"""Where runs are executed: one module each, all behind `services.planner.execution.Executor`."""
