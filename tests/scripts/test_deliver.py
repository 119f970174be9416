"""generate_api_key.py --deliver, against what speaks each manager's API."""

import json
import signal
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3  # type: ignore[import-untyped]
import pytest
from moto.server import ThreadedMotoServer

from app.errors import InvalidKey
from tests.delivery.managers import AzureServer, VaultServer
from tests.scripts.runner import SECRET, Runner, error_line

AWS_SECRET = "aws-secret-access-key-of-the-test"
AWS_SETTINGS = {
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_ACCESS_KEY_ID": "AKIAOFTHETEST0000000",
    "AWS_SECRET_ACCESS_KEY": AWS_SECRET,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
}
NOWHERE = "http://127.0.0.1:1"

AWS = "aws-secrets-manager:acme/logger"
VAULT = "vault:kv/acme/logger"
AZURE = f"azure-key-vault:{AzureServer.name}/acme-logger"


@pytest.fixture
def vault() -> Iterator[VaultServer]:
    """Start a Vault."""
    server = VaultServer()
    with server.running():
        yield server


@pytest.fixture
def azure(tmp_path: Path) -> Iterator[AzureServer]:
    """Start a key vault and a managed identity."""
    server = AzureServer(tmp_path)
    with server.running():
        yield server


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    """Start moto's server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class Aws:
    """An AWS that has nothing in it yet."""

    def __init__(self, url: str) -> None:
        self.url = url
        _post(f"{url}/moto-api/reset")
        self.environment = {"AWS_ENDPOINT_URL": url, **AWS_SETTINGS}

    def client(self, service: str) -> Any:
        """Give a client of the test's own."""
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=AWS_SETTINGS["AWS_DEFAULT_REGION"],
            aws_access_key_id=AWS_SETTINGS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=AWS_SECRET,
        )

    def secrets(self, name: str) -> list[dict[str, str]]:
        """Give what was stored under a name, newest first."""
        client = self.client("secretsmanager")
        listed = client.list_secret_version_ids(SecretId=name, IncludeDeprecated=True)["Versions"]
        newest_first = sorted(listed, key=lambda one: "AWSCURRENT" not in one["VersionStages"])
        values = [
            client.get_secret_value(SecretId=name, VersionId=one["VersionId"])["SecretString"]
            for one in newest_first
        ]
        client.close()
        return [json.loads(value) for value in values]

    def allow_only(self, *actions: str) -> dict[str, str]:
        """Give the environment of a user with these permissions, and check permissions."""
        client = self.client("iam")
        client.create_user(UserName="robot")
        policy = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": list(actions), "Resource": "*"}],
        }
        client.put_user_policy(
            UserName="robot", PolicyName="robot", PolicyDocument=json.dumps(policy)
        )
        made = client.create_access_key(UserName="robot")["AccessKey"]
        client.close()
        _post(f"{self.url}/moto-api/reset-auth", b"0")
        return {
            **self.environment,
            "AWS_ACCESS_KEY_ID": made["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"],
        }


@pytest.fixture
def aws(moto_url: str) -> Iterator[Aws]:
    """Give an empty AWS, where permissions are not checked."""
    yield Aws(moto_url)
    _post(f"{moto_url}/moto-api/reset-auth", b"inf")


def _post(url: str, body: bytes = b"") -> None:
    request = Request(url, body, {"Content-Type": "text/plain"}, method="POST")  # noqa: S310
    with urlopen(request, timeout=20) as response:  # noqa: S310
        response.read()


def _deliver(
    run: Runner, target: str, environment: dict[str, str], *options: str
) -> subprocess.CompletedProcess[str]:
    return run("generate_api_key", "--client", "acme", "--deliver", target, *options, **environment)


def _check_secret(run: Runner, secret: dict[str, str]) -> None:
    """Check that a secret is whole and its key works."""
    assert set(secret) == {"LOGGER_API_URL", "LOGGER_API_KEY", "client_id", "key_id"}
    assert secret["LOGGER_API_URL"] == "https://logs.example.com"
    principal = run.resolve(secret["LOGGER_API_KEY"])
    assert (principal.client_id, secret["client_id"]) == ("acme", "acme")
    assert secret["key_id"] in secret["LOGGER_API_KEY"]


def _check_failure(
    done: subprocess.CompletedProcess[str], target: str, part: str, status: int = 1
) -> None:
    """Check that a refusal is one line on stderr, which names the target and holds no secret."""
    assert (done.returncode, done.stdout) == (status, ""), done
    line = error_line(done.stderr)
    assert line.startswith(f"Error: {target}: ")
    assert part in line
    assert not any(word in line for word in (VaultServer.token, AzureServer.token, AWS_SECRET))


def _check_withdrawn(run: Runner, done: subprocess.CompletedProcess[str]) -> None:
    """Check that the one key that was made is off."""
    (made,) = run.json("list_api_keys", "--include-inactive")["api_keys"]
    assert not made["is_active"]
    assert f"key {made['key_id']} was switched off again" in done.stderr


def _check_no_key(run: Runner) -> None:
    run.prepare()  # no key is made where there is no database yet, either
    assert run.json("list_api_keys", "--include-inactive") == {"api_keys": []}


def _check_delivered(run: Runner, target: str, environment: dict[str, str]) -> str:
    """Check that a delivery is told without the key; give what is told."""
    done = _deliver(run, target, {**environment, "PUBLIC_URL": "https://logs.example.com"})
    assert (done.returncode, done.stderr.count("Error")) == (0, 0), done.stderr
    assert target in done.stdout
    assert not SECRET.search(done.stdout + done.stderr)
    return done.stdout


def test_aws_gets_the_key(run: Runner, aws: Aws) -> None:
    """A secret is made in AWS, later a new version of it; stdout says where, and no key."""
    for count in (1, 2):
        told = _check_delivered(run, AWS, aws.environment)
        secrets = aws.secrets("acme/logger")
        assert len(secrets) == count
        assert secrets[0]["key_id"] in told
        _check_secret(run, secrets[0])


def test_vault_gets_the_key(run: Runner, vault: VaultServer) -> None:
    """The fields are written to Vault with its token and namespace, each time as a new version."""
    for count in (1, 2):
        _check_delivered(run, VAULT, vault.environment)
        assert len(vault.stored["acme/logger"]) == count
        _check_secret(run, vault.stored["acme/logger"][-1])


def test_a_signing_secret_goes_along(run: Runner, vault: VaultServer) -> None:
    """The signing secret of a key that must sign is put beside the key, and shown nowhere else."""
    done = _deliver(run, VAULT, vault.environment, "--sign", "hmac-sha256", "--json")
    secret = vault.stored["acme/logger"][-1]["LOGGER_SIGNING_SECRET"]
    assert len(b64decode(secret)) == 32
    assert secret not in done.stdout + done.stderr


@pytest.mark.parametrize("named_by_url", [False, True])
def test_azure_gets_the_key(run: Runner, azure: AzureServer, named_by_url: bool) -> None:
    """A managed identity's token sets the secret in the vault of the name, or of the setting."""
    environment, target = azure.environment, AZURE
    if named_by_url:
        environment["AZURE_KEY_VAULT_URL"] = f"https://{azure.name}.vault.azure.net"
        target = "azure-key-vault:acme-logger"
    for count in (1, 2):
        _check_delivered(run, target, environment)
        sets = azure.stored["acme-logger"]
        assert (len(sets), sets[-1]["contentType"]) == (count, "application/json")
        _check_secret(run, json.loads(sets[-1]["value"]))


def test_withdrawn_key_does_not_work(run: Runner, vault: VaultServer) -> None:
    """A key that arrived, although the answer said otherwise, is refused from then on."""
    done = _deliver(run, "vault:old/acme", vault.environment)
    _check_withdrawn(run, done)
    ((fields,),) = vault.stored.values()
    with pytest.raises(InvalidKey):
        run.resolve(fields["LOGGER_API_KEY"])


def test_json_says_where_the_key_is(run: Runner, vault: VaultServer) -> None:
    """With --json stdout is the key object with delivered_to, and has no key."""
    done = _deliver(run, VAULT, vault.environment, "--json", "--role", "ingest")
    made = json.loads(done.stdout)
    assert (made["delivered_to"], made["role"], made["client_id"]) == (VAULT, "ingest", "acme")
    assert "key" not in made
    assert made["key_id"] == vault.stored["acme/logger"][0]["key_id"]


@pytest.mark.parametrize("how", ["full", "left"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_delivery_that_could_not_be_told_of(
    run: Runner, vault: VaultServer, how: str, options: list[str]
) -> None:
    """When the output fails the one line says which key is where, and the key works."""
    run.environment |= {**vault.environment, "PUBLIC_URL": "https://logs.example.com"}
    line = run.unheard(how, "generate_api_key", "--client", "acme", "--deliver", VAULT, *options)
    ((secret,),) = vault.stored.values()
    _check_secret(run, secret)
    assert line.endswith(f"Key {secret['key_id']} is active and in {VAULT}.")


def test_aws_refuses_the_put(run: Runner, aws: Aws) -> None:
    """A user who may look but not create gets one line, and the key is off."""
    done = _deliver(run, AWS, aws.allow_only("secretsmanager:DescribeSecret"))
    _check_failure(done, AWS, "ClientError (403)")
    _check_withdrawn(run, done)


def test_aws_refuses_to_look(run: Runner, aws: Aws) -> None:
    """A user who may do nothing has no key made."""
    _check_failure(_deliver(run, AWS, aws.allow_only("s3:ListBucket")), AWS, "ClientError (403)")
    _check_no_key(run)


def test_aws_secret_is_being_deleted(run: Runner, aws: Aws) -> None:
    """A secret that is scheduled for deletion takes no key, and none is made."""
    client = aws.client("secretsmanager")
    client.create_secret(Name="acme/logger", SecretString="{}")
    client.delete_secret(SecretId="acme/logger")
    client.close()
    _check_failure(_deliver(run, AWS, aws.environment), AWS, "scheduled for deletion")
    _check_no_key(run)


def test_vault_refuses_the_put(run: Runner, vault: VaultServer) -> None:
    """A refusal that quotes the key is told without the key, which is off."""
    vault.refuse_puts = 403
    done = _deliver(run, VAULT, vault.environment)
    _check_failure(done, VAULT, "Forbidden")
    _check_withdrawn(run, done)


def test_vault_refuses_the_token(run: Runner, vault: VaultServer) -> None:
    """A token that Vault does not know has no key made."""
    done = _deliver(run, VAULT, {**vault.environment, "VAULT_TOKEN": "hvs.another"})
    _check_failure(done, VAULT, "Forbidden")
    assert "hvs." not in done.stderr
    _check_no_key(run)


def test_vault_mount_of_version_1(run: Runner, vault: VaultServer) -> None:
    """A mount of KV version 1, which takes the request for another secret, is a failure."""
    done = _deliver(run, "vault:old/acme", vault.environment)
    _check_failure(done, "vault:old/acme", "not KV version 2")
    _check_withdrawn(run, done)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_put(run: Runner, vault: VaultServer, number: signal.Signals) -> None:
    """A signal while the key is on its way switches it off: it may have arrived or not."""
    vault.hold_puts = True
    process = run.start(
        *("generate_api_key", "--client", "acme", "--deliver", VAULT),
        env={**run.environment, **vault.environment},
        stdout=subprocess.PIPE,
    )
    assert vault.is_holding.wait(20)
    process.send_signal(number)
    out, error = process.communicate(timeout=20)
    done = subprocess.CompletedProcess(process.args, process.returncode, out, error)
    _check_failure(done, VAULT, "interrupted", 128 + number)
    _check_withdrawn(run, done)


def test_azure_refuses_the_put(run: Runner, azure: AzureServer) -> None:
    """An identity that may list but not set gets one line, and the key is off."""
    azure.refuse_puts = 403
    done = _deliver(run, AZURE, azure.environment)
    _check_failure(done, AZURE, "HttpResponseError (403)")
    _check_withdrawn(run, done)


def test_azure_has_no_identity(run: Runner, azure: AzureServer) -> None:
    """Without a credential that Azure accepts no key is made."""
    done = _deliver(run, AZURE, {**azure.environment, "IDENTITY_HEADER": "another"})
    _check_failure(done, AZURE, "ClientAuthenticationError")
    _check_no_key(run)


def test_azure_vault_is_an_impostor(run: Runner, azure: AzureServer) -> None:
    """A vault whose certificate nobody vouches for gets no token, and no key is made."""
    environment = azure.environment
    del environment["REQUESTS_CA_BUNDLE"]
    _check_failure(_deliver(run, AZURE, environment), AZURE, "ServiceRequestError")
    assert not [line for line in azure.asked if not line.startswith("CONNECT")]
    _check_no_key(run)


@pytest.mark.parametrize(
    ("target", "environment", "part"),
    [
        (AWS, {"AWS_ENDPOINT_URL": NOWHERE}, "EndpointConnectionError"),
        (AWS, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "NoCredentialsError"),
        (AWS, {"AWS_DEFAULT_REGION": ""}, "NoRegionError"),
        (VAULT, {"VAULT_ADDR": NOWHERE, "VAULT_TOKEN": VaultServer.token}, "ConnectionError"),
        (VAULT, {"VAULT_ADDR": NOWHERE}, "VAULT_TOKEN is not set"),
        (VAULT, {"VAULT_TOKEN": VaultServer.token}, "VAULT_ADDR is not set"),
        (AZURE, {"HTTPS_PROXY": NOWHERE}, "ServiceRe"),
        ("azure-key-vault:acme-logger", {}, "AZURE_KEY_VAULT_URL"),
    ],
)
def test_target_that_cannot_be_reached(
    run: Runner, target: str, environment: dict[str, str], part: str
) -> None:
    """A server that is away and a setting that is missing are one line, and no key is made."""
    defaults = {"HOME": str(run.cwd), **AWS_SETTINGS}
    chosen = {name: value for name, value in {**defaults, **environment}.items() if value}
    _check_failure(_deliver(run, target, chosen), target, part)
    _check_no_key(run)


@pytest.mark.parametrize(
    ("target", "module", "extra"),
    [
        (AWS, "boto3", "aws"),
        (VAULT, "hvac", "vault"),
        (AZURE, "azure.identity", "azure"),
        (AZURE, "azure.keyvault.secrets", "azure"),
    ],
)
def test_library_that_is_not_installed(
    run: Runner, tmp_path: Path, target: str, module: str, extra: str
) -> None:
    """Without a manager's library the line says how to get it; without the option none is needed.

    As in an interpreter that has no such module: a finder in front says so.
    """
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    environment = {"PYTHONPATH": str(tmp_path), "HOME": str(run.cwd)}
    done = _deliver(run, target, environment)
    _check_failure(done, target, f"pip install 'central-logger[{extra}]'")
    _check_no_key(run)
    assert run("generate_api_key", "--client", "acme", **environment).returncode == 0


@pytest.mark.parametrize(
    "target", ["", "vault", "vault:", "vault:kv", "nowhere:x", "azure-key-vault:a_b", "vault:kv/.."]
)
def test_target_that_makes_no_sense(run: Runner, target: str) -> None:
    """A target that no manager could have is wrong usage, before anything is touched."""
    done = _deliver(run, target, {})
    assert (done.returncode, done.stdout) == (2, "")
    assert "--deliver" in done.stderr
    assert not run.data_dir.exists()


def test_nobody_prints_a_key_that_bad_values_stop(run: Runner, vault: VaultServer) -> None:
    """A key that cannot be made leaves the manager as it was."""
    done = _deliver(run, VAULT, vault.environment, "--dataset", "A B")
    assert (done.returncode, "allowed_datasets" in done.stderr) == (1, True)
    assert vault.stored == {}
