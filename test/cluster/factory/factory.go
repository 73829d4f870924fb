// Package factory makes what stands before any software of ours runs: TPMs with EK certificates under a maker's root, machines
// that have booted (a recorded boot is replayed into the TPM), and what an operator has prepared with the project's own program:
// a signed reference set captured on a golden machine, an inventory, signed asset tags in the TPMs.
//
//	x, err := factory.New(ctx, group, log, dir)
//	m, err := x.Build(ctx, factory.Machine{Name: "fra-1", Country: "DE", Boot: "good"})
//	inventory := factory.Inventory(machines...)
package factory

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/parts"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// Reference is the name of the reference set that New captures, from the recorded boot "good".
const Reference = "prod"

// Factory has the keys of TPM maker and operator.
type Factory struct {
	dir     string
	group   *cluster.Group
	log     io.Writer
	keelson string
	ca      *tpmtest.CA
	boots   string
}

// Machine is a machine with a TPM.
type Machine struct {
	// Name is the node's, Country goes into its asset tag, Boot is a folder of the recorded boots (test/vectors).
	Name, Country, Boot string
	// Dir has the logs that a kernel would show, the command line and the asset tag.
	Dir string
	// TPM is the running TPM, EKHashes its endorsement keys.
	TPM      *node.TPM
	EKHashes []string
}

// Logs and documents in a machine's Dir. The first two are where a kernel's securityfs has them.
const (
	EventLog    = "security/tpm0/binary_bios_measurements"
	IMALog      = "security/ima/binary_runtime_measurements"
	CommandLine = "cmdline"
	Tag         = "tag.json"
)

// New makes the keys and captures the reference set. Files are under dir.
func New(ctx context.Context, g *cluster.Group, log io.Writer, dir string) (*Factory, error) {
	const program = "cmd/keelson"
	paths, err := parts.Commands(ctx, log, program)
	if err != nil {
		return nil, err
	}
	root, err := parts.ModuleRoot()
	if err != nil {
		return nil, err
	}
	x := &Factory{dir: dir, group: g, log: log, keelson: paths[program], boots: filepath.Join(root, "test", "vectors", "measured-boots")}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("factory: %w", err)
	}
	if x.ca, err = tpmtest.NewCA(); err != nil {
		return nil, err
	}
	if err := os.WriteFile(x.path("ek-root.pem"), x.ca.RootPEM(), 0o600); err != nil {
		return nil, fmt.Errorf("factory: %w", err)
	}
	for _, name := range []string{"tag-signer", "reference-signer"} {
		if err := WriteSigningKey(x.path(name+".key"), x.path(name+".pem")); err != nil {
			return nil, err
		}
	}
	return x, x.Reference(ctx, Reference, filepath.Join(x.boots, "good"))
}

// Reference does what an operator does with the evidence of a golden machine: captures it as a set, and signs that. The signed set is
// among [Factory.References] then.
func (x *Factory) Reference(ctx context.Context, name, evidence string) error {
	if err := os.MkdirAll(x.path("references"), 0o755); err != nil {
		return fmt.Errorf("factory: %w", err)
	}
	set := x.path(name + ".yaml")
	if err := x.Keelson(ctx, "reference", "capture", "--dir", evidence, "--name", name, "-o", set); err != nil {
		return err
	}
	return x.Keelson(ctx, "reference", "sign", "--key", x.path("reference-signer.key"), "--valid-for", "24h", "-o", x.path(filepath.Join("references", name+".json")), set)
}

// References are the signed sets, by the names of their files.
func (x *Factory) References() (map[string]string, error) {
	entries, err := os.ReadDir(x.path("references"))
	if err != nil {
		return nil, fmt.Errorf("factory: %w", err)
	}
	sets := map[string]string{}
	for _, e := range entries {
		content, err := os.ReadFile(x.path(filepath.Join("references", e.Name())))
		if err != nil {
			return nil, fmt.Errorf("factory: %w", err)
		}
		sets[e.Name()] = string(content)
	}
	return sets, nil
}

// CA is the TPM maker's.
func (x *Factory) CA() *tpmtest.CA { return x.ca }

func (x *Factory) path(name string) string { return filepath.Join(x.dir, name) }

// Files are what a SPIRE server's node attestor is configured with, by the names that examples/spire gives them.
func (x *Factory) Files() (map[string]string, error) {
	files := map[string]string{}
	for to, from := range map[string]string{
		"ek-roots.pem": "ek-root.pem", "reference-signer.pem": "reference-signer.pem", "tag-signer.pem": "tag-signer.pem",
	} {
		content, err := os.ReadFile(x.path(from))
		if err != nil {
			return nil, fmt.Errorf("factory: %w", err)
		}
		files[to] = string(content)
	}
	return files, nil
}

// Keelson runs the project's own program to its end.
func (x *Factory) Keelson(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, x.keelson, args...).CombinedOutput() // #nosec G204 -- our own program
	if err != nil {
		return fmt.Errorf("factory: keelson %s: %w: %s", strings.Join(args[:2], " "), err, out)
	}
	return nil
}

// Build makes a machine as m says and boots it.
func (x *Factory) Build(ctx context.Context, m Machine) (*Machine, error) {
	m.Dir = x.path(m.Name)
	if err := x.build(ctx, &m); err != nil {
		return nil, fmt.Errorf("factory: %s: %w", m.Name, err)
	}
	return &m, nil
}

// Reboot does what turning the machine off and on again does: a TPM with the same seeds and NV and fresh PCRs, and logs that
// hold the boot alone.
func (x *Factory) Reboot(ctx context.Context, m *Machine) error {
	if err := m.TPM.Close(); err != nil {
		return fmt.Errorf("factory: %s: %w", m.Name, err)
	}
	if err := x.boot(ctx, m); err != nil {
		return fmt.Errorf("factory: %s: %w", m.Name, err)
	}
	return nil
}

func (x *Factory) build(ctx context.Context, m *Machine) error {
	if err := x.boot(ctx, m); err != nil {
		return err
	}
	if err := tpmtest.Manufacture(ctx, m.TPM.Socket, x.ca); err != nil {
		return err
	}
	endorsements, err := m.TPM.Device.Endorsements(ctx)
	if err != nil {
		return err
	}
	for _, e := range endorsements {
		m.EKHashes = append(m.EKHashes, e.Hash.String())
	}
	return x.ProvisionTag(ctx, m, m.Country, 1)
}

// boot starts the TPM and replays the recorded boot into it.
func (x *Factory) boot(ctx context.Context, m *Machine) error {
	logs := map[string][]byte{}
	for to, from := range map[string]string{EventLog: "binary_bios_measurements", IMALog: "binary_runtime_measurements", CommandLine: "cmdline.txt"} {
		content, err := os.ReadFile(filepath.Join(x.boots, m.Boot, from))
		if err != nil {
			return err
		}
		logs[to] = content
		if err := os.MkdirAll(filepath.Dir(m.path(to)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(m.path(to), content, 0o600); err != nil {
			return err
		}
	}
	var err error
	if m.TPM, err = node.StartTPM(ctx, x.group, x.log, m.Name, m.path("tpm")); err != nil {
		return err
	}
	return node.Boot(ctx, m.TPM.Device, logs[EventLog], logs[IMALog])
}

func (m *Machine) path(name string) string { return filepath.Join(m.Dir, name) }

// RunFile lets the machine's kernel measure a program that is run: its IMA list and PCR 10 grow.
func (m *Machine) RunFile(ctx context.Context, path string, content []byte) error {
	return node.RunFile(ctx, m.TPM.Device, m.path(IMALog), path, content)
}

// ProvisionTag does what an operator does: signs a tag and writes its digest into the machine's TPM.
func (x *Factory) ProvisionTag(ctx context.Context, m *Machine, country string, serial int) error {
	if err := x.IssueTag(ctx, m.path(Tag), country, serial, m.EKHashes...); err != nil {
		return err
	}
	return x.Keelson(ctx, "tag", "provision", "--tpm", m.TPM.Socket, "--document", m.path(Tag))
}

// IssueTag signs an asset tag for the machine with these EKs and writes it to a file.
func (x *Factory) IssueTag(ctx context.Context, file, country string, serial int, ekHashes ...string) error {
	args := []string{"tag", "issue", "--key", x.path("tag-signer.key"), "--tag", "country=" + country, "--serial", fmt.Sprint(serial), "--valid-for", "24h", "-o", file}
	for _, hash := range ekHashes {
		args = append(args, "--ek-hash", hash)
	}
	return x.Keelson(ctx, args...)
}

// Inventory is the file that says which endorsement keys belong to which node.
func Inventory(machines ...*Machine) string {
	var b strings.Builder
	b.WriteString("machines:\n")
	for _, m := range machines {
		fmt.Fprintf(&b, "- node: %s\n  ekHashes: [%s]\n", m.Name, strings.Join(m.EKHashes, ", "))
	}
	return b.String()
}

// WriteSigningKey makes the key pair of whoever signs asset tags or reference sets.
func WriteSigningKey(private, public string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("factory: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("factory: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("factory: %w", err)
	}
	return errors.Join(
		os.WriteFile(private, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600),
		os.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), 0o600),
	)
}
