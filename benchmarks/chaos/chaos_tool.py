"""The tool of `benchmarks.chaos`: notes its start, then succeeds or fails."""

import os
import signal
import time

from shared import toolkit


def chaos_tool(notes: str, token: str, behaviour: str) -> dict[str, str]:
    """Append `RUN_ID ATTEMPT TOKEN` to the file `notes`, then behave as requested."""
    line = f"{toolkit.run.id} {toolkit.run.attempt} {token}\n".encode()
    file = os.open(notes, os.O_WRONLY | os.O_APPEND)
    os.write(file, line)  # a short append is atomic
    os.close(file)
    match behaviour:
        case "short":
            time.sleep(0.3)
        case "raise":
            raise ValueError(token)
        case "transient" if toolkit.run.attempt == 1:
            raise ConnectionError(token)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            while True:
                pass
        case "flood":
            print("x" * 200_000)
            for number in range(200):
                toolkit.metric("flood", number)
    return {"token": token}
