"""Sessions, apps, and what functions consist of: images, mounts, secrets."""

import shlex
from collections import defaultdict
from typing import Any

from modal_proto import api_pb2 as pb

from tests.modal_server.procedures import Metadata, Procedures, not_found, procedure

BUILDER = "2025.06"
SUCCESS = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS)

RATES = {"cpu_hour_cost": "0.0720", "mem_gib_hour_cost": "0.036", "gpu_hour_cost_t4": "0.36"}
"""Dollars by name.  The names are made up: the protocol has none."""


class DeployedApps(Procedures):
    """Deploys apps and functions.

    Attributes:
        apps: ids by the name under which an app was deployed.
        functions: the id of their app, and their definition, by id.
        variants: ids of functions with other options, by the request for them.
        images, secrets: definitions by id.
        mounted: contents of the files of mounts, by their SHA-256.
        mounts: the SHA-256 of each file by its name there, by id.
    """

    def __init__(self) -> None:
        super().__init__()
        self.apps: dict[str, str] = {}
        self.layouts: dict[str, dict[str, str]] = defaultdict(dict)
        self.functions: dict[str, tuple[str, pb.Function]] = {}
        self.variants: dict[bytes, str] = {}
        self.images: dict[str, pb.Image] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.named_secrets: dict[str, str] = {}
        self.mounts: dict[str, dict[str, str]] = {}
        self.mounted: dict[str, bytes] = {}

    # -- sessions ----------------------------------------------------------------------

    @procedure
    def ClientHello(self, request: Any, metadata: Metadata) -> pb.ClientHelloResponse:
        return pb.ClientHelloResponse()

    @procedure
    def AuthTokenGet(self, request: Any, metadata: Metadata) -> pb.AuthTokenGetResponse:
        return pb.AuthTokenGetResponse(token="token")

    @procedure
    def EnvironmentGetOrCreate(self, request: Any, metadata: Metadata) -> pb.EnvironmentGetOrCreateResponse:
        settings = pb.EnvironmentSettings(image_builder_version=BUILDER)
        return pb.EnvironmentGetOrCreateResponse(
            environment_id="en-1", metadata=pb.EnvironmentMetadata(name="main", settings=settings)
        )

    @procedure
    def WorkspaceNameLookup(self, request: Any, metadata: Metadata) -> pb.WorkspaceNameLookupResponse:
        return pb.WorkspaceNameLookupResponse(username="tests")

    @procedure
    def WorkspaceBillingRates(self, request: Any, metadata: Metadata) -> pb.WorkspaceBillingRatesResponse:
        return pb.WorkspaceBillingRatesResponse(rates=RATES)

    # -- apps --------------------------------------------------------------------------

    @procedure
    def AppGetByDeploymentName(self, request: Any, metadata: Metadata) -> pb.AppGetByDeploymentNameResponse:
        return pb.AppGetByDeploymentNameResponse(app_id=self.apps.get(request.name, ""))

    @procedure
    def AppCreate(self, request: Any, metadata: Metadata) -> pb.AppCreateResponse:
        return pb.AppCreateResponse(app_id=self.new_id("ap"))

    @procedure
    def AppHeartbeat(self, request: Any, metadata: Metadata) -> None:
        return None

    @procedure
    def AppClientDisconnect(self, request: Any, metadata: Metadata) -> None:
        return None

    @procedure
    def AppPublish(self, request: Any, metadata: Metadata) -> pb.AppPublishResponse:
        self.apps[request.name] = request.app_id
        self.layouts[request.app_id] = dict(request.function_ids)
        return pb.AppPublishResponse(url=f"http://127.0.0.1/apps/{request.name}")

    @procedure
    def AppGetOrCreate(self, request: Any, metadata: Metadata) -> pb.AppGetOrCreateResponse:
        if request.app_name not in self.apps:
            raise not_found(f"App '{request.app_name}' not found")
        return pb.AppGetOrCreateResponse(app_id=self.apps[request.app_name])

    @procedure
    def AppGetLayout(self, request: Any, metadata: Metadata) -> pb.AppGetLayoutResponse:
        layout = self.layouts[request.app_id]
        objects = {one.object_id: one for found in layout.values() for one in self.parts_of(found)}
        described = pb.AppLayout(function_ids=layout, objects=list(objects.values()))
        return pb.AppGetLayoutResponse(app_layout=described)

    @procedure
    def AppStop(self, request: Any, metadata: Metadata) -> None:
        self.apps = {name: one for name, one in self.apps.items() if one != request.app_id}
        self.stop_app(request.app_id)

    def stop_app(self, app_id: str) -> None:
        """End the containers of an app."""
        raise NotImplementedError

    def parts_of(self, function_id: str) -> list[pb.Object]:
        """Return what the function and its dependencies are."""
        function = self.functions[function_id][1]
        ids = {function_id, *(one.object_id for one in function.object_dependencies)}
        return [self._object(one) for one in sorted(ids)]

    def _object(self, object_id: str) -> pb.Object:
        match object_id.partition("-")[0]:
            case "fu":
                return pb.Object(object_id=object_id, function_handle_metadata=self.handle(object_id))
            case "mo":
                described = pb.MountHandleMetadata(content_checksum_sha256_hex="0")
                return pb.Object(object_id=object_id, mount_handle_metadata=described)
            case _:
                return pb.Object(object_id=object_id)

    # -- what functions consist of -----------------------------------------------------

    @procedure
    def SecretGetOrCreate(self, request: Any, metadata: Metadata) -> pb.SecretGetOrCreateResponse:
        if request.deployment_name and request.deployment_name not in self.named_secrets:
            raise not_found(f"Secret '{request.deployment_name}' not found")
        found = self.named_secrets.get(request.deployment_name) or self.new_id("st")
        self.secrets.setdefault(found, dict(request.env_dict))
        return pb.SecretGetOrCreateResponse(secret_id=found)

    @procedure
    def ImageGetOrCreate(self, request: Any, metadata: Metadata) -> pb.ImageGetOrCreateResponse:
        image_id = self.new_id("im")
        self.images[image_id] = request.image
        return pb.ImageGetOrCreateResponse(
            image_id=image_id, result=SUCCESS, metadata=pb.ImageMetadata(image_builder_version=BUILDER)
        )

    def commands_of(self, image_id: str) -> list[str]:
        """Return the commands that make an image, the first ones first."""
        image = self.images[image_id]
        before = [one for base in image.base_images for one in self.commands_of(base.image_id)]
        return [*before, *image.dockerfile_commands]

    def variables_of(self, image_id: str) -> dict[str, str]:
        """Return the environment variables that an image sets."""
        given = [one.removeprefix("ENV ") for one in self.commands_of(image_id) if one.startswith("ENV ")]
        pairs = (one.partition("=") for one in given)
        return {name: "".join(shlex.split(value)) for name, _, value in pairs}

    def files_under(self, directory: str) -> dict[str, bytes]:
        """Return the files of all mounts below a directory, by name."""
        named = {name: sha256 for mount in self.mounts.values() for name, sha256 in mount.items()}
        return {name: self.mounted[sha256] for name, sha256 in named.items() if name.startswith(directory)}

    @procedure
    def MountGetOrCreate(self, request: Any, metadata: Metadata) -> pb.MountGetOrCreateResponse:
        mount_id = self.new_id("mo")
        self.mounts[mount_id] = {one.filename: one.sha256_hex for one in request.files}
        return pb.MountGetOrCreateResponse(
            mount_id=mount_id, handle_metadata=pb.MountHandleMetadata(content_checksum_sha256_hex="0")
        )

    @procedure
    def MountPutFile(self, request: Any, metadata: Metadata) -> pb.MountPutFileResponse:
        if request.WhichOneof("data_oneof") == "data":
            self.mounted[request.sha256_hex] = request.data
        return pb.MountPutFileResponse(exists=request.sha256_hex in self.mounted)

    @procedure
    def MountBatchedCheckExistence(
        self, request: Any, metadata: Metadata
    ) -> pb.MountBatchedCheckExistenceResponse:
        missing = [one for one in request.sha256_hex_hashes if one not in self.mounted]
        return pb.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    # -- functions ---------------------------------------------------------------------

    @procedure
    def FunctionPrecreate(self, request: Any, metadata: Metadata) -> pb.FunctionPrecreateResponse:
        function_id = request.existing_function_id or self.new_id("fu")
        made = pb.Function(function_name=request.function_name, function_type=request.function_type)
        self.functions[function_id] = (request.app_id, made)
        return pb.FunctionPrecreateResponse(function_id=function_id, handle_metadata=self.handle(function_id))

    @procedure
    def FunctionCreate(self, request: Any, metadata: Metadata) -> pb.FunctionCreateResponse:
        function_id = request.existing_function_id or self.new_id("fu")
        made = pb.Function()
        made.CopyFrom(request.function)
        self.functions[function_id] = (request.app_id, made)
        return pb.FunctionCreateResponse(
            function_id=function_id,
            function=made,
            handle_metadata=self.handle(function_id),
            function_data=self._data(function_id),
        )

    @procedure
    def FunctionGet(self, request: Any, metadata: Metadata) -> pb.FunctionGetResponse:
        layout = self.layouts.get(self.apps.get(request.app_name, ""), {})
        if request.object_tag not in layout:
            raise not_found(f"no function {request.object_tag} in app {request.app_name}")
        function_id = layout[request.object_tag]
        return pb.FunctionGetResponse(
            function_id=function_id,
            handle_metadata=self.handle(function_id),
            function=self._data(function_id),
        )

    @procedure
    def FunctionBindParams(self, request: Any, metadata: Metadata) -> pb.FunctionBindParamsResponse:
        """Make a variant of a function, with other options."""
        app_id, base = self.functions[request.function_id]
        bound, chosen = pb.Function(), request.function_options
        bound.CopyFrom(base)
        if chosen.HasField("timeout_secs"):
            bound.timeout_secs = chosen.timeout_secs
        if chosen.HasField("concurrency_limit"):
            bound.autoscaler_settings.max_containers = chosen.concurrency_limit
        if chosen.HasField("resources"):
            bound.resources.MergeFrom(chosen.resources)
        if chosen.replace_secret_ids:
            del bound.secret_ids[:]
            bound.secret_ids.extend(chosen.secret_ids)
        asked = request.SerializeToString(deterministic=True)
        function_id = self.variants.setdefault(asked, self.new_id("fu"))
        self.functions[function_id] = (app_id, bound)
        return pb.FunctionBindParamsResponse(
            bound_function_id=function_id, handle_metadata=self.handle(function_id)
        )

    def handle(self, function_id: str) -> pb.FunctionHandleMetadata:
        """Return what a client knows of a function."""
        app_id, one = self.functions[function_id]
        return pb.FunctionHandleMetadata(
            function_name=one.function_name,
            function_type=one.function_type,
            definition_id=f"de-{function_id}",
            max_object_size_bytes=2 << 20,
            function_schema=one.function_schema,
            supported_input_formats=one.supported_input_formats,
            supported_output_formats=one.supported_output_formats,
            app_id=app_id,
        )

    def _data(self, function_id: str) -> pb.FunctionData:
        one = self.functions[function_id][1]
        ranked = pb.FunctionData.RankedFunction(rank=0, function=one)
        return pb.FunctionData(
            module_name=one.module_name,
            function_name=one.function_name,
            function_type=one.function_type,
            timeout_secs=one.timeout_secs,
            ranked_functions=[ranked],
        )
