"""A plugin of pytest, ``-p tests.gpu.at_once``: a failure is told where it comes, as a run that is cut short may not
reach its end, where pytest tells them all."""

from __future__ import annotations

import pytest


class AtOnce:
    """Writes the tracebacks of the tests that fail to the terminal of this process."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write_line(f"\n{report.nodeid} ({report.when}):\n{report.longreprtext}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:  # processes of xdist have none
        config.pluginmanager.register(AtOnce(terminal))
