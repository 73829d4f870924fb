package plugintest_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	sdktest "github.com/spiffe/spire-plugin-sdk/plugintest"
	agentv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/nodeattestor/v1"
	serverv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"

	"github.com/keelson-project/keelson/charts"
	"github.com/keelson-project/keelson/nodeattestor/agentplugin"
	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/nodeattestor/serverplugin"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/tpmtest"
)

const trustDomain = "example.org"

// quoted is what every test's server asks for.
var quoted = nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}}

// kubernetes is one real API for all tests of this package; nil with -short.
var kubernetes *cluster.Cluster

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	if testing.Short() {
		fmt.Println("skipped: every test here needs a real kube-apiserver, which -short leaves out")
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	c, err := cluster.Start(ctx, cluster.Options{Log: os.Stderr})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := c.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	crds, err := charts.CRDs()
	if err == nil {
		err = c.Apply(ctx, crds...)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	kubernetes = c
	return m.Run()
}

// must fails the test on an error.
func must[T any](t testing.TB, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// machine is one node: a TPM into which a real boot was replayed, its logs, and its
// agent plugin.
type machine struct {
	dir   string
	tpm   string // socket
	dev   *tpmdev.Device
	agent *agentv1.NodeAttestorPluginClient
	conf  *configv1.ConfigServiceClient
	ekHex []string
}

// newMachine makes a machine of one manufacturer that has booted one of the recorded boots.
func newMachine(t testing.TB, ca *tpmtest.CA, boot string, templates ...string) *machine {
	t.Helper()
	m := &machine{dir: tpmtest.Dir(t), tpm: tpmtest.Start(t)}
	check(t, tpmtest.Manufacture(t.Context(), m.tpm, ca, templates...))
	m.dev = must2(tpmdev.Open(m.tpm))(t)
	from := filepath.Join("..", "vectors", "measured-boots", boot)
	for _, name := range []string{"binary_bios_measurements", "binary_runtime_measurements", "cmdline.txt"} {
		check(t, os.WriteFile(m.file(name), must2(os.ReadFile(filepath.Join(from, name)))(t), 0o600))
	}
	check(t, tpmtest.Replay(t.Context(), m.dev, must2(tpmtest.ParseBoot(m.read(t, "binary_bios_measurements"), m.read(t, "binary_runtime_measurements")))(t)))
	for _, e := range must2(m.dev.Endorsements(t.Context()))(t) {
		m.ekHex = append(m.ekHex, e.Hash.String())
	}
	return m
}

// must2 is must for a call in place.
func must2[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T { t.Helper(); return must(t, v, err) }
}

func (m *machine) file(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) read(t testing.TB, name string) []byte {
	t.Helper()
	return must2(os.ReadFile(m.file(name)))(t)
}

// serve starts the machine's agent plugin.
func (m *machine) serve(t *testing.T, extra string) *machine {
	t.Helper()
	m.agent, m.conf = new(agentv1.NodeAttestorPluginClient), new(configv1.ConfigServiceClient)
	plugin := agentplugin.New()
	sdktest.ServeInBackground(t, sdktest.Config{
		PluginServer: agentv1.NodeAttestorPluginServer(plugin), PluginClient: m.agent,
		ServiceServers: []pluginsdk.ServiceServer{configv1.ConfigServiceServer(plugin)},
		ServiceClients: []pluginsdk.ServiceClient{m.conf},
	})
	_, err := m.conf.Configure(t.Context(), &configv1.ConfigureRequest{
		CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: trustDomain}, HclConfiguration: m.config(extra)})
	check(t, err)
	return m
}

// config is the plugin_data of the machine's agent plugin.
func (m *machine) config(extra string) string {
	return fmt.Sprintf("tpm = %q\ndata_dir = %q\nevent_log = %q\nima_log = %q\ncommand_line = %q\n%s",
		m.tpm, m.file("data"), m.file("binary_bios_measurements"), m.file("binary_runtime_measurements"), m.file("cmdline.txt"), extra)
}

// capture makes a reference set from the machine as it is.
func (m *machine) capture(t testing.TB, name string) []byte {
	t.Helper()
	key := must2(m.dev.AK(t.Context(), m.file("data")))(t)
	nonce := []byte("capture")
	qs := must2(m.dev.Quote(t.Context(), key, nonce, []nodeclaim.Selection{quoted}))(t)
	q := must2(quote.Verify(must2(ak.Parse(key.Public))(t), qs[0].Evidence, nonce, quoted))(t)
	boot := must2(eventlog.Replay(m.read(t, "binary_bios_measurements"), q.PCRs))(t)
	boot = boot.ConfirmCommandLine(strings.TrimSpace(string(m.read(t, "cmdline.txt"))))
	r := ima.NewReplayer(q.PCRs, ima.Options{})
	must2(r.Write(m.read(t, "binary_runtime_measurements")))(t)
	r.Booted(boot.Booted)
	list := must2(r.Finish())(t)
	set := must2(reference.Capture(name, reference.Evidence{Boot: boot, PCRs: q.PCRs, IMA: &list}))(t)
	return set.Marshal()
}

// tagKey is who signs asset tags in these tests.
type tagKey struct {
	ed25519.PrivateKey
	pem []byte
}

func newTagKey(t testing.TB) tagKey {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	der := must2(x509.MarshalPKIXPublicKey(pub))(t)
	return tagKey{priv, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})}
}

// tag issues a tag for EKs and returns the signed document.
func (k tagKey) tag(t testing.TB, ekHashes []string, serial uint64, country string) []byte {
	t.Helper()
	now := time.Now().UTC().Truncate(time.Second)
	return must2(assettag.Sign(assettag.Document{Tags: map[string]string{"country": country}, EKHashes: ekHashes,
		Serial: serial, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}, k, rand.Reader))(t)
}

// provision puts a signed document on the machine: into its file, its digest into the TPM.
func (m *machine) provision(t testing.TB, signed []byte) {
	t.Helper()
	check(t, os.WriteFile(m.file("tag.json"), signed, 0o600))
	check(t, m.dev.ProvisionTag(t.Context(), assettag.DefaultIndex, assettag.Digest(signed)))
}

// server is a server plugin with its files.
type server struct {
	dir    string
	client *serverv1.NodeAttestorPluginClient
	conf   *configv1.ConfigServiceClient
}

type serverOptions struct {
	pcrs      string // the content of pcrs {}; everybody's when empty
	ca        *tpmtest.CA
	reference []byte
	inventory map[string][]string // node -> EK hashes
	tagSigner []byte              // PEM; empty asks for no tag
	tagExtra  string              // further keys of the tag block
	extra     string
	// kubernetes replaces the block of that name.
	kubernetes string
	// auditLog and stateDir are where the audit log and the pending verdicts go; the server's folder when empty.
	auditLog, stateDir string
	// wall is the server machine's clock; time.Now when nil.
	wall func() time.Time
}

func newServer(t *testing.T, o serverOptions) *server {
	t.Helper()
	s := &server{dir: t.TempDir(), client: new(serverv1.NodeAttestorPluginClient), conf: new(configv1.ConfigServiceClient)}
	if o.wall == nil {
		o.wall = time.Now
	}
	plugin := serverplugin.New(o.wall)
	sdktest.ServeInBackground(t, sdktest.Config{
		PluginServer: serverv1.NodeAttestorPluginServer(plugin), PluginClient: s.client,
		ServiceServers: []pluginsdk.ServiceServer{configv1.ConfigServiceServer(plugin)},
		ServiceClients: []pluginsdk.ServiceClient{s.conf},
		Logger:         hclog.New(&hclog.LoggerOptions{Output: t.Output(), Level: hclog.Debug}),
	})
	t.Cleanup(func() { check(t, plugin.Close()) })
	check(t, s.configure(t, o))
	return s
}

func (s *server) file(name string) string { return filepath.Join(s.dir, name) }

func (s *server) configure(t *testing.T, o serverOptions) error {
	t.Helper()
	_, err := s.conf.Configure(t.Context(), &configv1.ConfigureRequest{
		CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: trustDomain}, HclConfiguration: s.config(t, o)})
	return err
}

// config writes the server's files, and returns the plugin_data that names them.
func (s *server) config(t testing.TB, o serverOptions) string {
	t.Helper()
	var inv bytes.Buffer
	inv.WriteString("machines:\n")
	for node, hashes := range o.inventory {
		fmt.Fprintf(&inv, "- node: %s\n  ekHashes: [%s]\n", node, strings.Join(hashes, ", "))
	}
	if len(o.inventory) == 0 {
		inv.Reset()
		inv.WriteString("machines: []\n")
	}
	check(t, os.WriteFile(s.file("roots.pem"), o.ca.RootPEM(), 0o600))
	check(t, os.WriteFile(s.file("inventory.yaml"), inv.Bytes(), 0o600))
	check(t, os.WriteFile(s.file("reference.yaml"), o.reference, 0o600))
	api := fmt.Sprintf("kubernetes { kubeconfig = %q }\n", kubernetes.AdminKubeconfig())
	if o.kubernetes != "" {
		api = o.kubernetes
	}
	tag := ""
	if len(o.tagSigner) > 0 {
		check(t, os.WriteFile(s.file("signer.pem"), o.tagSigner, 0o600))
		tag = fmt.Sprintf("tag {\n signers = [%q]\n%s}\n", s.file("signer.pem"), o.tagExtra)
	}
	pcrs := "sha256 = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]"
	if o.pcrs != "" {
		pcrs = o.pcrs
	}
	auditLog, stateDir := s.file("audit.jsonl"), s.dir
	if o.auditLog != "" {
		auditLog = o.auditLog
	}
	if o.stateDir != "" {
		stateDir = o.stateDir
	}
	return fmt.Sprintf("ek_mode = \"certificate\"\nek_roots = [%q]\ninventory = %q\nreferences = [%q]\naudit_log = %q\nstate_dir = %q\n"+
		"pcrs {\n%s\n}\n%s%s%s",
		s.file("roots.pem"), s.file("inventory.yaml"), s.file("reference.yaml"), auditLog, stateDir, pcrs, api, tag, o.extra)
}

// audit is the audit file's lines.
func (s *server) audit(t testing.TB) []audit.Entry {
	t.Helper()
	var out []audit.Entry
	for line := range strings.Lines(string(must2(os.ReadFile(s.file("audit.jsonl")))(t))) {
		var e audit.Entry
		check(t, json.Unmarshal([]byte(line), &e))
		out = append(out, e)
	}
	return out
}

// tamper changes messages from agent to server: payload is round 0.
type tamper func(round int, msg []byte) []byte

// attest carries an attestation between the plugins as SPIRE does.
func attest(t testing.TB, m *machine, s *server, change tamper) (*serverv1.AgentAttributes, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	agent, err := m.agent.AidAttestation(ctx)
	check(t, err)
	srv, err := s.client.Attest(ctx)
	check(t, err)
	for round := 0; ; round++ {
		out, err := agent.Recv()
		if err != nil {
			return nil, fmt.Errorf("agent: %w", err)
		}
		req := &serverv1.AttestRequest{}
		edit := func(b []byte) []byte {
			if change != nil {
				return change(round, b)
			}
			return b
		}
		if round == 0 {
			req.Request = &serverv1.AttestRequest_Payload{Payload: edit(out.GetPayload())}
		} else {
			req.Request = &serverv1.AttestRequest_ChallengeResponse{ChallengeResponse: edit(out.GetChallengeResponse())}
		}
		if err := srv.Send(req); err != nil && !errors.Is(err, io.EOF) { // then Recv says more
			return nil, err
		}
		resp, err := srv.Recv()
		if err != nil {
			return nil, err
		}
		if a := resp.GetAgentAttributes(); a != nil {
			return a, agent.CloseSend()
		}
		check(t, agent.Send(&agentv1.Challenge{Challenge: resp.GetChallenge()}))
	}
}

// measure does what the kernel does when a file runs: a line in the log, PCR 10 extended.
func (m *machine) measure(t testing.TB, entry []byte) {
	t.Helper()
	f := must2(os.OpenFile(m.file("binary_runtime_measurements"), os.O_APPEND|os.O_WRONLY, 0o600))(t)
	must2(f.Write(entry))(t)
	check(t, f.Close())
	check(t, tpmtest.Replay(t.Context(), m.dev, must2(tpmtest.ParseIMA(entry, []nodeclaim.HashAlg{nodeclaim.SHA256}))(t)))
}

type refusal = nodeclaim.Refusal

func anyKeys(keys ...crypto.PublicKey) []crypto.PublicKey { return keys }
