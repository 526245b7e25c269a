"""The units of a finished run, asked by programs and agents: over HTTP on loopback, or over MCP.

`units.tools(run, models)` are the calls; `web.application` and `mcp.Server` serve them. Whoever asks sends names and
numbers, never code.
"""

from saelab.serve import mcp, units, web

__all__ = ["mcp", "units", "web"]
