"""A provider of Terraform: its protocol, and nothing of what it provides.

Owns the messages and calls of version 6 of the plugin protocol as far as a provider of resources
needs them, the values in them, and the server. Terraform is told by ``TF_REATTACH_PROVIDERS`` where
a provider listens, and starts none then: https://developer.hashicorp.com/terraform/plugin/debugging

The protocol: https://github.com/hashicorp/terraform/blob/main/docs/plugin-protocol/tfplugin6.proto
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import grpc
import msgpack
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from schema import Attribute, Block

PROTOCOL = 6


class Refusal(Exception):
    """What was asked for cannot be done; Terraform is told why."""


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


#: A value that will be known when the resource is made.
UNKNOWN = _Unknown()

#: The attributes of one resource; None where there is no resource.
State = dict[str, Any]


class Provider(Protocol):
    """What a provider has to be able to do."""

    #: The block of each resource, and that of the provider as ``provider``.
    schema: Mapping[str, Block]

    def configure(self, config: State) -> None:
        """Hear how the provider is configured."""

    def validate(self, kind: str, config: State) -> None:
        """Refuse a configuration."""

    def plan(self, kind: str, prior: State | None, proposed: State) -> tuple[State, list[str]]:
        """Return what a resource will be, and for which attributes' sake it has to be made anew."""

    def create(self, kind: str, planned: State) -> State:
        """Make a resource."""

    def read(self, kind: str, state: State) -> State | None:
        """Return what has become of a resource."""

    def update(self, kind: str, prior: State, planned: State) -> State:
        """Change a resource."""

    def delete(self, kind: str, state: State) -> None:
        """Delete a resource."""


_FIELD = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "bytes": _FIELD.TYPE_BYTES,
    "string": _FIELD.TYPE_STRING,
    "bool": _FIELD.TYPE_BOOL,
    "int": _FIELD.TYPE_INT64,
    # An enumeration is a number on the line.
    "enum": _FIELD.TYPE_INT64,
}
# Fields that this provider neither reads nor writes are left out: the format allows for that.
_MESSAGES = """
Value: msgpack=1 bytes, json=2 bytes
Step: attribute_name=1 string
Path: steps=1 Step*
Diagnostic: severity=1 enum, summary=2 string, detail=3 string, attribute=4 Path
Attribute: name=1 string, type=2 bytes, required=4 bool, optional=5 bool, computed=6 bool, \
sensitive=7 bool, write_only=11 bool
Block: attributes=2 Attribute*, block_types=3 NestedBlock*
NestedBlock: type_name=1 string, block=2 Block, nesting=3 enum, min_items=4 int, max_items=5 int
Schema: version=1 int, block=2 Block
ResourceSchema: key=1 string, value=2 Schema
Capabilities: plan_destroy=1 bool
Empty: nothing=1000 bool
GetProviderSchemaResponse: provider=1 Schema, resource_schemas=2 ResourceSchema*, \
server_capabilities=6 Capabilities
ConfigRequest: config=1 Value
ConfigureRequest: config=2 Value
ResourceConfigRequest: type_name=1 string, config=2 Value
Diagnostics: diagnostics=1 Diagnostic*
LateDiagnostics: diagnostics=2 Diagnostic*
RawState: json=1 bytes
UpgradeRequest: type_name=1 string, version=2 int, raw_state=3 RawState
UpgradeResponse: upgraded_state=1 Value, diagnostics=2 Diagnostic*
ReadRequest: type_name=1 string, current_state=2 Value
ReadResponse: new_state=1 Value, diagnostics=2 Diagnostic*
PlanRequest: type_name=1 string, prior_state=2 Value, proposed_new_state=3 Value, config=4 Value
PlanResponse: planned_state=1 Value, requires_replace=2 Path*, diagnostics=4 Diagnostic*
ApplyRequest: type_name=1 string, prior_state=2 Value, planned_state=3 Value, config=4 Value
ApplyResponse: new_state=1 Value, diagnostics=3 Diagnostic*
"""
_SINGLE, _LIST, _SET = 1, 2, 3
_NESTING = {"single": _SINGLE, "list": _LIST, "set": _SET}
_ERROR = 1


def _messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="plugin.proto", package="p", syntax="proto3")
    for line in _MESSAGES.strip().splitlines():
        name, _, fields = line.partition(": ")
        message = file.message_type.add(name=name)
        for each in fields.split(", "):
            key, _, kind = each.partition(" ")
            field, _, number = key.partition("=")
            several = kind.endswith("*")
            kind = kind.rstrip("*")
            message.field.add(
                name=field,
                number=int(number),
                type=_TYPES.get(kind, _FIELD.TYPE_MESSAGE),
                type_name=None if kind in _TYPES else f".p.{kind}",
                label=_FIELD.LABEL_REPEATED if several else _FIELD.LABEL_OPTIONAL,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        each.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"p.{each.name}"))
        for each in file.message_type
    }


_M = _messages()


def decode(value: Any) -> Any:
    """Return a value as Terraform has sent it; what is not known yet is `UNKNOWN`."""
    if value.json:
        return json.loads(value.json)
    # The text of an unknown value may narrow down what it can be, which nobody here asks.
    return msgpack.unpackb(value.msgpack, ext_hook=lambda code, data: UNKNOWN, strict_map_key=False)


def encode(value: Any) -> Any:
    """Return a value as Terraform reads it."""
    return _M["Value"](msgpack=msgpack.packb(value, default=_pack_unknown))


def _pack_unknown(value: Any) -> msgpack.ExtType:
    assert value is UNKNOWN, value
    return msgpack.ExtType(0, b"\0")


def _describe_block(block: Block) -> Any:
    return _M["Block"](
        attributes=[_describe(name, each) for name, each in sorted(block.attributes.items())],
        block_types=[
            _M["NestedBlock"](
                type_name=name,
                block=_describe_block(each.block),
                nesting=_NESTING[each.nesting],
                min_items=int(each.required and each.nesting != "single"),
                max_items=0 if each.nesting == "single" else each.most,
            )
            for name, each in sorted(block.blocks.items())
        ],
    )


def _describe(name: str, attribute: Attribute) -> Any:
    return _M["Attribute"](
        name=name,
        type=json.dumps(attribute.type).encode(),
        required=attribute.required,
        optional=attribute.optional,
        computed=attribute.computed,
        write_only=name.endswith("_wo"),
    )


class _Calls:
    """The calls of the protocol, by their names."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def GetProviderSchema(self, request: Any) -> Any:
        blocks = {name: _describe_block(each) for name, each in self._provider.schema.items()}
        schemas = {name: _M["Schema"](block=each) for name, each in blocks.items()}
        return _M["GetProviderSchemaResponse"](
            provider=schemas.pop("provider"),
            resource_schemas=[
                _M["ResourceSchema"](key=name, value=each) for name, each in schemas.items()
            ],
        )

    def ValidateProviderConfig(self, request: Any) -> Any:
        return _M["LateDiagnostics"]()

    def ConfigureProvider(self, request: Any) -> Any:
        self._provider.configure(decode(request.config))
        return _M["Diagnostics"]()

    def ValidateResourceConfig(self, request: Any) -> Any:
        self._provider.validate(request.type_name, decode(request.config))
        return _M["Diagnostics"]()

    def UpgradeResourceState(self, request: Any) -> Any:
        state = json.loads(request.raw_state.json)
        return _M["UpgradeResponse"](upgraded_state=encode(state))

    def ReadResource(self, request: Any) -> Any:
        state = self._provider.read(request.type_name, decode(request.current_state))
        return _M["ReadResponse"](new_state=encode(state))

    def PlanResourceChange(self, request: Any) -> Any:
        prior, proposed = decode(request.prior_state), decode(request.proposed_new_state)
        planned, replaced = self._provider.plan(request.type_name, prior, proposed)
        paths = [_M["Path"](steps=[_M["Step"](attribute_name=each)]) for each in replaced]
        return _M["PlanResponse"](planned_state=encode(planned), requires_replace=paths)

    def ApplyResourceChange(self, request: Any) -> Any:
        kind = request.type_name
        prior, planned = decode(request.prior_state), decode(request.planned_state)
        state: State | None = None
        if planned is None:
            self._provider.delete(kind, prior)
        elif prior is None:
            state = self._provider.create(kind, planned)
        else:
            state = self._provider.update(kind, prior, planned)
        return _M["ApplyResponse"](new_state=encode(state))

    def StopProvider(self, request: Any) -> Any:
        return _M["Empty"]()


#: What each call is asked with and answers.
_SIGNATURES = {
    "GetProviderSchema": ("Empty", "GetProviderSchemaResponse"),
    "ValidateProviderConfig": ("ConfigRequest", "LateDiagnostics"),
    "ConfigureProvider": ("ConfigureRequest", "Diagnostics"),
    "ValidateResourceConfig": ("ResourceConfigRequest", "Diagnostics"),
    "UpgradeResourceState": ("UpgradeRequest", "UpgradeResponse"),
    "ReadResource": ("ReadRequest", "ReadResponse"),
    "PlanResourceChange": ("PlanRequest", "PlanResponse"),
    "ApplyResourceChange": ("ApplyRequest", "ApplyResponse"),
    "StopProvider": ("Empty", "Empty"),
}


def serve(provider: Provider, socket: Path) -> Callable[[], None]:
    """Listen on a socket in the file system; return what ends it."""
    calls = _Calls(provider)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            _answer(getattr(calls, name), _M[response]),
            request_deserializer=_M[request].FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        for name, (request, response) in _SIGNATURES.items()
    }
    server = grpc.server(
        ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", 1 << 26)]
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("tfplugin6.Provider", handlers)]
    )
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    return lambda: server.stop(None).wait() and None


def _answer(call: Callable[[Any], Any], response: Any) -> Callable[[Any, Any], Any]:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return call(request)
        except Refusal as error:
            return _failed(response, str(error), "")
        except Exception as error:  # noqa: BLE001  # Terraform shows whatever it is
            traceback.print_exc(file=sys.stderr)
            return _failed(response, repr(error), traceback.format_exc())

    return answer


def _failed(response: Any, summary: str, detail: str) -> Any:
    diagnostic = _M["Diagnostic"](severity=_ERROR, summary=summary, detail=detail)
    return response(diagnostics=[diagnostic])


def reattachment(addresses: Iterable[str], socket: Path, pid: int) -> str:
    """Return what ``TF_REATTACH_PROVIDERS`` has to be."""
    there = {"Network": "unix", "String": str(socket)}
    known = {"Protocol": "grpc", "ProtocolVersion": PROTOCOL, "Pid": pid, "Test": True}
    return json.dumps({each: {**known, "Addr": there} for each in addresses})
