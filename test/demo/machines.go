package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/factory"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// machine is one node of the demo.
type machine struct {
	name, country, boot string
	number              int
	trusted             bool // whether it should be, before the tampering

	dir      string
	tpm      *node.TPM
	ekHashes []string
	runtime  *node.Runtime
	standin  *node.Standin // nil with containerd
	agent    *cluster.SpireAgent
}

func machines() []*machine {
	return []*machine{
		{name: "fra-1", country: "DE", boot: "good", number: 1, trusted: true},
		{name: "par-1", country: "FR", boot: "good", number: 2, trusted: true},
		{name: "evil-1", country: "DE", boot: "cmdline", number: 3},
	}
}

func (d *demo) machine(name string) *machine {
	for _, m := range d.machines {
		if m.name == name {
			return m
		}
	}
	return nil
}

// path is a file of the machine.
func (m *machine) path(elements ...string) string {
	return filepath.Join(append([]string{m.dir}, elements...)...)
}

// startMachines makes what stands before any software of ours: TPMs from a factory, machines that have booted, an operator who
// has written an inventory, captured reference values on a golden machine, and provisioned asset tags.
func (d *demo) startMachines(ctx context.Context, s *Step) error {
	ca, err := tpmtest.NewCA()
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.path("ek-root.pem"), ca.RootPEM(), 0o600); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if err := factory.WriteSigningKey(d.path("tag-signer.key"), d.path("tag-signer.pub")); err != nil {
		return err
	}
	if err := d.captureReference(ctx, s); err != nil {
		return err
	}
	var inventory strings.Builder
	inventory.WriteString("machines:\n")
	for _, m := range machines() {
		d.machines = append(d.machines, m)
		m.dir = d.path(m.name)
		if err := d.bootMachine(ctx, m, ca); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if err := d.provisionTag(ctx, m); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		fmt.Fprintf(&inventory, "- node: %s\n  ekHashes: [%s]\n", m.name, strings.Join(m.ekHashes, ", "))
		d.report.TPM = m.tpm.Kind
		s.expect(true, m.name, "%s with boot log %q replayed, EK certified, asset tag country=%s provisioned", m.tpm.Kind, m.boot, m.country)
	}
	if err := os.WriteFile(d.path("inventory.yaml"), []byte(inventory.String()), 0o600); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

func (d *demo) bootLog(boot, name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(d.root, "test", "vectors", "measured-boots", boot, name))
}

func (d *demo) captureReference(ctx context.Context, s *Step) error {
	if err := os.MkdirAll(d.path("references"), 0o700); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	golden := filepath.Join(d.root, "test", "vectors", "measured-boots", "good")
	if _, err := d.keelson(ctx, "reference", "capture", "--dir", golden, "--name", "prod", "-o", d.path("prod.yaml")); err != nil {
		return err
	}
	if err := factory.WriteSigningKey(d.path("reference-signer.key"), d.path("reference-signer.pub")); err != nil {
		return err
	}
	if _, err := d.keelson(ctx, "reference", "sign", "--key", d.path("reference-signer.key"), "--valid-for", "24h",
		"-o", d.path("references", "prod.json"), d.path("prod.yaml")); err != nil {
		return err
	}
	s.expect(true, "reference set", "prod, captured from the recorded good boot and signed")
	return nil
}

func (d *demo) bootMachine(ctx context.Context, m *machine, ca *tpmtest.CA) error {
	if err := os.MkdirAll(m.path("agent"), 0o755); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	// What the kernel would show under /sys/kernel/security and /proc.
	logs := map[string][]byte{}
	for _, name := range []string{"binary_bios_measurements", "binary_runtime_measurements", "cmdline.txt"} {
		content, err := d.bootLog(m.boot, name)
		if err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		logs[name] = content
		if err := os.WriteFile(m.path(name), content, 0o600); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
	}
	var err error
	if m.tpm, err = node.StartTPM(ctx, d.group, d.out, m.name, m.path("tpm")); err != nil {
		return err
	}
	if err := tpmtest.Manufacture(ctx, m.tpm.Socket, ca); err != nil {
		return err
	}
	endorsements, err := m.tpm.Device.Endorsements(ctx)
	if err != nil {
		return err
	}
	for _, e := range endorsements {
		m.ekHashes = append(m.ekHashes, e.Hash.String())
	}
	return node.Boot(ctx, m.tpm.Device, logs["binary_bios_measurements"], logs["binary_runtime_measurements"])
}

// provisionTag does what an operator does, with the same program.
func (d *demo) provisionTag(ctx context.Context, m *machine) error {
	args := []string{"tag", "issue", "--key", d.path("tag-signer.key"), "--tag", "country=" + m.country, "--serial", "1", "--valid-for", "24h",
		"-o", m.path("tag.json")}
	for _, hash := range m.ekHashes {
		args = append(args, "--ek-hash", hash)
	}
	if _, err := d.keelson(ctx, args...); err != nil {
		return err
	}
	_, err := d.keelson(ctx, "tag", "provision", "--tpm", m.tpm.Socket, "--document", m.path("tag.json"))
	return err
}

// close ends what the machine runs. Pods go first, while their runtime is there to end them.
func (m *machine) close(ctx context.Context) error {
	var errs []error
	if m.agent != nil {
		m.agent.Stop()
	}
	if m.runtime != nil {
		errs = append(errs, m.runtime.Close(ctx))
	}
	if m.standin != nil {
		m.standin.Close()
	}
	if m.tpm != nil {
		errs = append(errs, m.tpm.Close())
	}
	return errors.Join(errs...)
}
