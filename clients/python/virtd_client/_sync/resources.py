# Generated from _async/resources.py by `python -m tests.tools.gen_sync_client`; never edited by hand.
"""The daemon, and its hosts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from virtd_client import _messages
from virtd_client._io import blocking as io
from virtd_client._sync.service import Service, pages

if TYPE_CHECKING:
    from virtd.v1.capability_pb2 import Capability
    from virtd.v1.host_pb2 import Host, HostCheck
    from virtd.v1.host_pb2_grpc import HostServiceStub
    from virtd.v1.server_pb2 import ServerInfo
    from virtd.v1.server_pb2_grpc import ServerServiceStub

_RESULT = "virtd.v1.OperationResult"


class Server(Service):
    """The daemon itself."""

    @cached_property
    def _stub(self) -> ServerServiceStub:
        from virtd.v1.server_pb2_grpc import ServerServiceStub

        return ServerServiceStub(self._transport.channel)

    def info(self) -> ServerInfo:
        """Version, features and backends."""
        from virtd.v1 import server_pb2 as pb

        return (self._transport.unary(self._stub.GetServerInfo, pb.GetServerInfoRequest())).server

    def services(self) -> dict[str, tuple[str, ...]]:
        """Every service that the daemon offers and its methods, as gRPC reflection tells them.

        In the daemon's order; names are full (``virtd.v1.GuestService``), methods are bare.

        :raises VirtdError: as the daemon says; Unavailable where nothing answers.
        """
        from google.protobuf.descriptor_pb2 import FileDescriptorProto
        from grpc_reflection.v1alpha import reflection_pb2 as pb
        from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

        self.info()  # waits for a daemon that is away, which a stream does not
        call = self._transport.bidi(ServerReflectionStub(self._transport.channel).ServerReflectionInfo)
        found: dict[str, tuple[str, ...]] = {}
        try:
            call.write(pb.ServerReflectionRequest(list_services=""))
            listed = call.read()
            for name in [entry.name for entry in listed.list_services_response.service] if listed else []:
                call.write(pb.ServerReflectionRequest(file_containing_symbol=name))
                answer = call.read()
                for raw in answer.file_descriptor_response.file_descriptor_proto if answer else []:
                    file = FileDescriptorProto.FromString(raw)
                    for service in file.service:
                        if f"{file.package}.{service.name}" == name:
                            found[name] = tuple(method.name for method in service.method)
        except io.RpcError as error:
            raise self._transport.error(error) from None
        finally:
            call.cancel()
        return found


class Hosts(Service):
    """Hosts: hypervisor endpoints.  Names are ``hosts/{host}``."""

    @cached_property
    def _stub(self) -> HostServiceStub:
        from virtd.v1.host_pb2_grpc import HostServiceStub

        return HostServiceStub(self._transport.channel)

    def list(self, *, page_size: int = 0) -> tuple[Host, ...]:
        """All hosts, by name."""
        from virtd.v1 import host_pb2 as pb

        hosts: tuple[Host, ...] = ()
        for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListHosts, pb.ListHostsRequest(page_size=page_size, page_token=token)
            )
        ):
            hosts += tuple(page.hosts)
        return hosts

    def get(self, name: str) -> Host:
        """One host."""
        from virtd.v1 import host_pb2 as pb

        return (self._transport.unary(self._stub.GetHost, pb.GetHostRequest(name=name))).host

    def add(
        self,
        host_id: str,
        uri: str,
        *,
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Host:
        """Add a host and remember it; it is returned at once, CONNECTING.

        :param options: what the backend defines for its hosts, such as ``tls_ca`` or ``ssh_key``.
        """
        from virtd.v1 import host_pb2 as pb

        request = pb.AddHostRequest(
            host_id=host_id,
            uri=uri,
            labels=labels,
            options=options,
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return (self._transport.unary(self._stub.AddHost, request)).host

    def remove(
        self, name: str, *, force: bool = False, request_id: str | None = None, validate_only: bool = False
    ) -> None:
        """Forget a host that was added; its guests stay as they are."""
        from virtd.v1 import host_pb2 as pb

        request = pb.RemoveHostRequest(
            name=name, force=force, request_id=_messages.new_request_id(request_id), validate_only=validate_only
        )
        self._transport.unary(self._stub.RemoveHost, request)

    def probe(self, name: str) -> Host:
        """Look at the host now."""
        from virtd.v1 import host_pb2 as pb

        return (self._transport.unary(self._stub.ProbeHost, pb.ProbeHostRequest(name=name))).host

    def diagnose(self, name: str) -> tuple[HostCheck, ...]:
        """Look the host over for what commonly goes wrong; a dead host is a check that says so."""
        from virtd.v1 import host_pb2 as pb

        return tuple((self._transport.unary(self._stub.DiagnoseHost, pb.DiagnoseHostRequest(name=name))).checks)

    def capabilities(self, name: str, *, machine: str = "", guest: str = "") -> tuple[Capability, ...]:
        """What the host can do, with level, provenance and reason.

        :param machine: of guests of this kind instead: one of the host's ``facts.guest_kinds``.
        :param guest: of this guest, which is of a kind: ``hosts/{host}/guests/{guest}``.
        """
        from virtd.v1 import host_pb2 as pb

        request = pb.GetCapabilitiesRequest(name=name, machine=machine, guest=guest)
        return tuple((self._transport.unary(self._stub.GetCapabilities, request)).capabilities)
