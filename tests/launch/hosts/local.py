"""This machine as a host: what is sent there runs here, without ssh."""

from launch.hosts.host import COMMAND, Host

HERE = Host("here", "localhost", ("sh", "-c", COMMAND))
