"""Volumes, which are directories, and queues."""

import asyncio
import contextlib
import hashlib
import shutil
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp.web
from grpclib import GRPCError, Status
from modal._utils.blob_utils import BLOCK_SIZE
from modal_proto import api_pb2 as pb

from tests.modal_server.containers import Containers
from tests.modal_server.procedures import Metadata, not_found, procedure

MAX_ITEMS = 5_000


class Partition:
    """One partition of a queue."""

    def __init__(self) -> None:
        self.items: list[bytes] = []
        self.expires = float("inf")


class Volumes(Containers):
    """Keeps volumes, queues and blobs.

    Attributes:
        http_url: of the server for contents.
        volumes: directories by id.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.http_url = ""
        self.volumes: dict[str, Path] = {}
        self.volume_names: dict[str, str] = {}
        self.blocks: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.queue_names: dict[str, str] = {}
        self.partitions: dict[tuple[str, bytes], Partition] = defaultdict(Partition)
        self.queue_changed = asyncio.Condition()

    # -- contents over HTTP ----------------------------------------------------------------

    def routes(self) -> list[aiohttp.web.RouteDef]:
        """Return the routes of the server for contents."""
        return [
            aiohttp.web.put("/blob/{id}", self._put_blob),
            aiohttp.web.get("/blob/{id}", self._get_blob),
            aiohttp.web.put("/block/{sha256}", self._put_block),
            aiohttp.web.get("/file/{path}/{start}/{length}", self._get_part),
        ]

    async def _put_blob(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        content = self.blobs[request.match_info["id"]] = await request.read()
        return aiohttp.web.Response(headers={"ETag": f'"{hashlib.md5(content).hexdigest()}"'})

    async def _get_blob(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(body=self.blobs[request.match_info["id"]])

    async def _put_block(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        sha256 = request.match_info["sha256"]
        self.blocks[sha256] = await request.read()
        return aiohttp.web.Response(body=f"put:{sha256}".encode())

    async def _get_part(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        path = Path(bytes.fromhex(request.match_info["path"]).decode())
        start, length = int(request.match_info["start"]), int(request.match_info["length"])
        return aiohttp.web.Response(body=path.read_bytes()[start : start + length])

    @procedure
    def BlobCreate(self, request: Any, metadata: Metadata) -> pb.BlobCreateResponse:
        blob_id = self.new_id("bl")
        url = f"{self.http_url}/blob/{blob_id}"
        return pb.BlobCreateResponse(
            blob_id=blob_id, upload_url=url, blob_ids=[blob_id], upload_urls=pb.UploadUrlList(items=[url])
        )

    @procedure
    def BlobGet(self, request: Any, metadata: Metadata) -> pb.BlobGetResponse:
        return pb.BlobGetResponse(download_url=f"{self.http_url}/blob/{request.blob_id}")

    # -- volumes -----------------------------------------------------------------------------

    @procedure
    def VolumeGetOrCreate(self, request: Any, metadata: Metadata) -> pb.VolumeGetOrCreateResponse:
        name = request.deployment_name
        if name not in self.volume_names:
            if request.object_creation_type == pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
                raise not_found(f"Volume '{name}' not found in environment 'main'")
            self.volume_names[name] = self.new_id("vo")
            self.volumes[self.volume_names[name]] = self.folder / "volumes" / name
            self.volumes[self.volume_names[name]].mkdir(parents=True)
        described = pb.VolumeMetadata(version=pb.VOLUME_FS_VERSION_V2, name=name)
        return pb.VolumeGetOrCreateResponse(
            volume_id=self.volume_names[name], version=pb.VOLUME_FS_VERSION_V2, metadata=described
        )

    @procedure
    def VolumeDelete(self, request: Any, metadata: Metadata) -> None:
        shutil.rmtree(self.volumes.pop(request.volume_id))
        self.volume_names = {name: one for name, one in self.volume_names.items() if one != request.volume_id}

    @procedure
    def VolumePutFiles2(self, request: Any, metadata: Metadata) -> pb.VolumePutFiles2Response:
        missing = [
            pb.VolumePutFiles2Response.MissingBlock(
                file_index=number,
                block_index=index,
                put_url=f"{self.http_url}/block/{block.contents_sha256.hex()}",
            )
            for number, file in enumerate(request.files)
            for index, block in enumerate(file.blocks)
            if block.contents_sha256.hex() not in self.blocks
        ]
        for file in request.files if not missing else ():
            self._write(self.volumes[request.volume_id], file, request.disallow_overwrite_existing_files)
        return pb.VolumePutFiles2Response(missing_blocks=missing)

    def _write(self, volume: Path, file: Any, disallow_overwrite: bool) -> None:
        path = volume / file.path.lstrip("/")
        if path.exists() and disallow_overwrite:
            raise GRPCError(Status.ALREADY_EXISTS, file.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as written:
            for number, block in enumerate(file.blocks):
                written.seek(number * BLOCK_SIZE)
                written.write(self.blocks[block.contents_sha256.hex()])
            written.truncate(file.size)  # a block comes without the zeros at its end

    @procedure
    def VolumeGetFile2(self, request: Any, metadata: Metadata) -> pb.VolumeGetFile2Response:
        path = self._path(request)
        if path.is_dir():
            raise GRPCError(Status.INVALID_ARGUMENT, f"{request.path} is a directory")
        size = path.stat().st_size
        end = min(size, request.start + (request.len or size))
        bounds = [*range(request.start, end, BLOCK_SIZE), end]
        name = str(path).encode().hex()
        urls = [f"{self.http_url}/file/{name}/{start}/{stop - start}" for start, stop in pairwise(bounds)]
        return pb.VolumeGetFile2Response(
            get_urls=urls, size=size, start=request.start, len=end - request.start
        )

    async def VolumeListFiles2(self, stream: Any) -> None:
        request = await stream.recv_message()
        volume, path = self.volumes[request.volume_id], self._path(request)
        found = [path] if path.is_file() else sorted(path.rglob("*") if request.recursive else path.iterdir())
        entries = [
            pb.FileEntry(
                path=str(one.relative_to(volume)),
                type=pb.FileEntry.DIRECTORY if one.is_dir() else pb.FileEntry.FILE,
                size=one.stat().st_size,
                mtime=int(one.stat().st_mtime),
            )
            for one in found
        ]
        await stream.send_message(pb.VolumeListFiles2Response(entries=entries))

    @procedure
    def VolumeRemoveFile2(self, request: Any, metadata: Metadata) -> None:
        path = self._path(request)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    def _path(self, request: Any) -> Path:
        path: Path = self.volumes[request.volume_id] / request.path.lstrip("/")
        if not path.exists():
            raise not_found(f"{request.path}: no such file or directory")
        return path

    # -- queues ------------------------------------------------------------------------------

    @procedure
    def QueueGetOrCreate(self, request: Any, metadata: Metadata) -> pb.QueueGetOrCreateResponse:
        name = request.deployment_name
        if name not in self.queue_names:
            if request.object_creation_type == pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
                raise not_found(f"Queue '{name}' not found in environment 'main'")
            self.queue_names[name] = self.new_id("qu")
        return pb.QueueGetOrCreateResponse(
            queue_id=self.queue_names[name], metadata=pb.QueueMetadata(name=name)
        )

    @procedure
    def QueueDelete(self, request: Any, metadata: Metadata) -> None:
        self.queue_names = {name: one for name, one in self.queue_names.items() if one != request.queue_id}

    @procedure
    async def QueuePut(self, request: Any, metadata: Metadata) -> None:
        partition = self._partition(request)
        if len(partition.items) + len(request.values) > MAX_ITEMS:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, "the partition is full")
        partition.expires = time.monotonic() + (request.partition_ttl_seconds or 86_400)
        async with self.queue_changed:
            partition.items.extend(request.values)
            self.queue_changed.notify_all()

    @procedure
    async def QueueGet(self, request: Any, metadata: Metadata) -> pb.QueueGetResponse:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.001, request.timeout)), self.queue_changed:
                await self.queue_changed.wait_for(lambda: self._partition(request).items)
        partition = self._partition(request)
        count = request.n_values or 1
        found, partition.items = partition.items[:count], partition.items[count:]
        return pb.QueueGetResponse(values=found)

    @procedure
    def QueueLen(self, request: Any, metadata: Metadata) -> pb.QueueLenResponse:
        return pb.QueueLenResponse(len=len(self._partition(request).items))

    @procedure
    def QueueClear(self, request: Any, metadata: Metadata) -> None:
        self.partitions.pop((request.queue_id, bytes(request.partition_key)), None)

    def _partition(self, request: Any) -> Partition:
        key = (request.queue_id, bytes(request.partition_key))
        if self.partitions[key].expires < time.monotonic():
            del self.partitions[key]
        return self.partitions[key]
