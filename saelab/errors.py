"""The one exception that users see: a mistake that they can mend, in one line."""


class UserError(Exception):
    """A user's mistake: which setting, its value, what was expected, what to do.

    Scripts print it as one line and exit with status 2; library callers can catch it. Anything else that is raised
    is a fault of saelab's own and keeps its traceback. Line breaks in a value or a name become spaces.
    """

    def __init__(self, setting: str, value: object, expected: str, remedy: str = "") -> None:
        self.setting, self.value, self.expected, self.remedy = setting, value, expected, remedy
        text = f"{setting}={value}: {expected}" + (f"; {remedy}" if remedy else "")
        super().__init__(" ".join(text.splitlines()))
