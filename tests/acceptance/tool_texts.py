"""Tools for the tests of the commands: one that succeeds, one that fails, one that waits for a file."""

GREET = """
    def greet(name: str, times: int = 1) -> dict:
        '''Say hello.

        Args:
            name: To whom.
        '''
        print("hello", name)
        return {"greeting": "hello " + name, "times": times}
"""
STUMBLE = """
    def stumble():
        yield {"id": 1}
        yield {"id": 2}
        raise ValueError("it slipped")
"""
WAIT = """
    import os, time
    from shared import toolkit

    def wait(door: str):
        print("waiting", flush=True)
        toolkit.progress(1, 2, "half way")
        while not os.path.exists(door):
            time.sleep(0.01)
        print("done waiting", flush=True)
        return {"waited": True}
"""
