"""Why a medium is not fetched, in fixed sentences.

They say nothing that the client did not send itself: no path, no address that a name stands for, no word of a
library. What exists and is not allowed reads like what does not exist, so that nobody can go looking.
"""

from __future__ import annotations

from sightline.data.media import IMAGE_FORMATS, VIDEO_FORMATS


class Refused(Exception):
    """A medium that is not fetched: 400 where the request asks for what it may not, 422 where its host fails."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class AddressRefused(Refused):
    """An address that must not be connected to."""


def unknown_kind() -> Refused:
    return Refused("is not an http(s), file or data: URL; give one of these")


def broken_url(why: str) -> Refused:
    return Refused(f"is not a web address that this server fetches: {why}")


def closed_host(host: str) -> AddressRefused:
    """For a private address, a name that stands for one, and a name that nobody knows."""
    return AddressRefused(f"names the host {host}, which is not a public host that this server can find")


def host_not_listed(host: str) -> Refused:
    return Refused(f"names the host {host}, which is not among those that this server may fetch from")


def no_fetching() -> Refused:
    return Refused("is a web address, but this server fetches none; send the bytes as a data: URL")


def no_files() -> Refused:
    return Refused("names a file, but this server opens none; send the bytes as a data: URL")


def no_such_file() -> Refused:
    return Refused("names a file that this server does not have or may not open")


def slow_file() -> Refused:
    return Refused("names a file that could not be read in time; try again", 503)


def bad_redirect() -> Refused:
    return Refused("is redirected to an address that this server does not fetch; give the final address")


def too_many_redirects(most: int) -> Refused:
    return Refused(f"is redirected more than {most} times; give the final address")


def answered(host: str, status: int) -> Refused:
    return Refused(f"could not be fetched: {host} answered {status}", 422)


def encoded(host: str) -> Refused:
    return Refused(f"could not be fetched: {host} sent it compressed, though asked not to", 422)


def failed(host: str) -> Refused:
    return Refused(f"could not be fetched: {host} could not be reached or broke off", 422)


def too_slow(host: str) -> Refused:
    return Refused(f"could not be fetched: {host} took too long", 422)


def too_many_bytes(most: int) -> Refused:
    return Refused(f"has more than the {most:,} bytes allowed; use a smaller file")


def too_many_bytes_in_all(most: int) -> Refused:
    return Refused(f"brings the request's media over the {most:,} bytes allowed; send fewer or smaller ones")


def empty() -> Refused:
    return Refused("is empty; give a picture or a video")


def not_a_picture() -> Refused:
    return Refused(f"is not a picture in a supported format; use {IMAGE_FORMATS}")


def not_a_video() -> Refused:
    return Refused(f"is not a video in a supported format; use {VIDEO_FORMATS}")


def busy() -> Refused:
    return Refused("must wait: this server is fetching as much as it may; try again", 503)
