package vmboot_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/vmboot"
	"github.com/keelson-project/keelson/test/parts"
	"github.com/keelson-project/keelson/test/tpmtest"
	"github.com/keelson-project/keelson/test/vectors"
)

const trustDomain = "keelson.test"

// Firmware, boot stub and kernel measure themselves, the kernel's own driver is between our agent and the TPM, and a SPIRE
// server that has never seen the machine judges it. Nothing here is replayed.
func TestAVirtualMachineProvesItsBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("boots virtual machines in emulation, which -short leaves out")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute) // SPIRE is built first where it is not there
	defer cancel()
	r := newRig(ctx, t)
	good := r.build(ctx, t, "good", vmboot.Changes{})
	fra := r.machine(ctx, t, "fra-1")

	t.Run("a machine that no set describes is refused, and its evidence makes the set", func(t *testing.T) {
		vm := r.boot(ctx, t, fra, "golden", good, true)
		refused := r.verdict(ctx, t, vm, fra)
		if refused.Outcome != audit.Untrusted || !strings.Contains(told(refused), "reference set recorded") {
			t.Errorf("a machine like none that is known: %+v", refused)
		}
		r.capture(ctx, t, vm)
	})
	if t.Failed() {
		return
	}
	t.Run("boots", func(t *testing.T) {
		t.Run("the same boot again is trusted, and its agent has the TPM's name", func(t *testing.T) {
			t.Parallel()
			r.trusted(ctx, t, fra, good)
		})
		t.Run("an update is trusted at its first boot by a set that was predicted from its files", func(t *testing.T) {
			t.Parallel()
			r.updated(ctx, t)
		})
		for name, c := range tampered() {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				image := r.build(ctx, t, c.machine, c.changes)
				m := r.machine(ctx, t, c.machine)
				vm := r.boot(ctx, t, m, c.machine, image, false)
				got := r.verdict(ctx, t, vm, m)
				if got.Outcome != audit.Untrusted {
					t.Errorf("the server's verdict: %+v", got)
				}
				// The unified kernel image holds all three, so that as a whole it differs too.
				if want := []string{c.check, "bootloader.digest"}; !slices.Equal(slices.Compact(checks(got)), want) {
					t.Errorf("refused by %v, want %v\n%s", checks(got), want, told(got))
				}
				if want := c.says(image); !strings.Contains(told(got), want) {
					t.Errorf("the refusal does not say %q:\n%s", want, told(got))
				}
				if id := r.agent(ctx, t, m); id != "" {
					t.Errorf("the server has let agent %s in", id)
				}
			})
		}
	})
}

type tampering struct {
	machine string
	changes vmboot.Changes
	check   string
	says    func(*vmboot.Image) string
}

func tampered() map[string]tampering {
	return map[string]tampering{
		"another kernel command line is refused by name": {
			"cmdline-1", vmboot.Changes{CommandLine: "evil=1"}, "kernel.cmdline", func(*vmboot.Image) string {
				return fmt.Sprintf("kernel command line is %q, reference set prod has %q; added: \"evil=1\"",
					vmboot.DefaultCommandLine+" evil=1", vmboot.DefaultCommandLine)
			},
		},
		"another initrd is refused by name": {
			"initrd-1", vmboot.Changes{Files: map[string]string{"etc/evil": "one more file\n"}}, "kernel.initrd", func(i *vmboot.Image) string {
				return fmt.Sprintf("initrd has digest sha256:%x, reference set prod has sha256:", i.InitrdSHA256)
			},
		},
		"another kernel is refused by name": {
			"kernel-1", vmboot.Changes{Kernel: []byte{'!'}}, "kernel.digest", func(i *vmboot.Image) string {
				return fmt.Sprintf("kernel has digest sha256:%x, reference set prod has sha256:", i.KernelSHA256)
			},
		},
	}
}

// rig is a SPIRE server, and what machines are made of.
type rig struct {
	dir     string
	kit     *vmboot.Kit
	group   *cluster.Group
	ca      *tpmtest.CA
	signer  *ecdsa.PrivateKey
	server  *cluster.SpireServer
	keelson string
}

// machine is a TPM with its asset tag.
type machine struct {
	tpm *vmboot.TPM
	tag []byte
}

func newRig(ctx context.Context, t *testing.T) *rig {
	dir, err := os.MkdirTemp("", "vmboot-") // t.TempDir is too long for a Unix socket
	must(t, err)
	r := &rig{dir: dir, group: cluster.NewGroup(dir)}
	t.Cleanup(func() {
		if err := errors.Join(r.group.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	r.kit, err = vmboot.Gather(ctx, t.Output(), dir)
	if errors.Is(err, vmboot.ErrUnavailable) {
		t.Skipf("needs QEMU, firmware and a kernel: %v", err)
	}
	must(t, err)
	programs, err := parts.Commands(ctx, t.Output(), "cmd/keelson", "cmd/keelson-nodeattestor-server")
	must(t, err)
	r.keelson = programs["cmd/keelson"]
	r.ca, err = tpmtest.NewCA()
	must(t, err)
	r.signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	spki, err := x509.MarshalPKIXPublicKey(r.signer.Public())
	must(t, err)
	r.write(t, "tag-signer.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
	r.write(t, "ek-root.pem", r.ca.RootPEM())
	// What the server knows at first is another machine's boot.
	for _, name := range []string{"binary_bios_measurements", "binary_runtime_measurements", "quote.attest", "quote.sig", "ak.tpmpub", "cmdline.txt"} {
		r.write(t, filepath.Join("recorded", name), vectors.Read(t, "good", name))
	}
	must(t, os.Mkdir(r.path("references"), 0o700))
	r.reference(ctx, t, "recorded")
	r.server, err = cluster.StartSpireServer(ctx, r.group, cluster.SpireServerOptions{
		Dir: r.path("spire"), Log: t.Output(), TrustDomain: trustDomain,
		Plugins: []cluster.Plugin{{
			Type: "NodeAttestor", Name: "keelson_tpm", Cmd: programs["cmd/keelson-nodeattestor-server"], Data: fmt.Sprintf(`
      ek_mode = "certificate"
      ek_roots = [%q]
      references = [%q]
      pcrs { sha256 = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14] }
      tag { signers = [%q] }
      audit_log = %q`, r.path("ek-root.pem"), r.path("references"), r.path("tag-signer.pem"), r.path("audit.jsonl")),
		}},
	})
	must(t, err)
	return r
}

func (r *rig) path(elements ...string) string {
	return filepath.Join(append([]string{r.dir}, elements...)...)
}

func (r *rig) write(t *testing.T, name string, content []byte) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(r.path(name)), 0o700))
	must(t, os.WriteFile(r.path(name), content, 0o600))
}

// reference does what an operator does with the evidence of a golden machine, which is in the folder of the set's name.
func (r *rig) reference(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	out, err := exec.CommandContext(ctx, r.keelson, "reference", "capture", "--dir", r.path(name), "--name", name, "-o", r.path(name+".yaml")).CombinedOutput()
	if err != nil {
		t.Fatalf("keelson reference capture: %v\n%s", err, out)
	}
	must(t, os.Rename(r.path(name+".yaml"), r.path("references", name+".yaml")))
}

func (r *rig) build(ctx context.Context, t *testing.T, name string, c vmboot.Changes) *vmboot.Image {
	t.Helper()
	image, err := r.kit.Build(ctx, r.path("image-"+name), c)
	must(t, err)
	return image
}

// machine makes a machine as it comes from the factory and has an asset tag put on it.
func (r *rig) machine(ctx context.Context, t *testing.T, name string) machine {
	t.Helper()
	var m machine
	var err error
	m.tpm, err = r.kit.MakeTPM(ctx, r.group, t.Output(), name, r.path(name), r.ca, func(dev *tpmdev.Device, made *vmboot.TPM) error {
		now := time.Now()
		tag := assettag.Document{Tags: map[string]string{"country": "DE"}, EKHashes: made.EKHashes, Serial: 1, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
		if m.tag, err = assettag.Sign(tag, r.signer, rand.Reader); err != nil {
			return err
		}
		return dev.ProvisionTag(ctx, assettag.DefaultIndex, assettag.Digest(m.tag))
	})
	must(t, err)
	return m
}

// boot switches a machine on; it is off again when the test ends.
func (r *rig) boot(ctx context.Context, t *testing.T, m machine, name string, image *vmboot.Image, golden bool) *vmboot.VM {
	t.Helper()
	vm, err := r.kit.Start(ctx, r.group, vmboot.VMOptions{
		Name: name, Dir: r.path("vm-" + name), Image: image, TPM: m.tpm, Server: r.server, TrustDomain: trustDomain, Tag: m.tag, Golden: golden,
	})
	must(t, err)
	t.Cleanup(vm.Close)
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute) // half a minute on an idle machine
	defer cancel()
	must(t, vm.Until(ctx, "vmboot: started"))
	t.Logf("%s: init runs after %.1f s", name, time.Since(begun).Seconds())
	return vm
}

// verdict waits for the server's verdict on a machine that booted just now.
func (r *rig) verdict(ctx context.Context, t *testing.T, vm *vmboot.VM, m machine) (last audit.Entry) {
	t.Helper()
	begun, known := time.Now(), len(r.entries(t, m))
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	must(t, vm.Wait(ctx, func(context.Context) error {
		entries := r.entries(t, m)
		if len(entries) <= known {
			return errors.New("no attestation yet")
		}
		last = entries[len(entries)-1]
		return nil
	}))
	t.Logf("the server's verdict after %.1f s more: %s %s", time.Since(begun).Seconds(), last.Outcome, told(last))
	return last
}

// entries are the audit log's entries about a machine.
func (r *rig) entries(t *testing.T, m machine) (found []audit.Entry) {
	t.Helper()
	log, err := os.ReadFile(r.path("audit.jsonl"))
	must(t, err)
	if _, err := audit.Verify(bytes.NewReader(log), audit.Start()); err != nil {
		return nil // a line is being written
	}
	for line := range bytes.Lines(log) {
		var e audit.Entry
		must(t, json.Unmarshal(line, &e))
		if slices.Contains(m.tpm.EKHashes, e.EKHash) {
			found = append(found, e)
		}
	}
	return found
}

func (r *rig) capture(ctx context.Context, t *testing.T, vm *vmboot.VM) {
	t.Helper()
	must(t, os.Mkdir(r.path("prod"), 0o700))
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	must(t, vm.Evidence(ctx, r.path("prod")))
	r.reference(ctx, t, "prod")
}

// agent is the SPIFFE ID of the machine's agent at the server, "" when there is none.
func (r *rig) agent(ctx context.Context, t *testing.T, m machine) string {
	t.Helper()
	agents, err := r.server.Agents(ctx)
	must(t, err)
	for _, a := range agents {
		for _, hash := range m.tpm.EKHashes {
			if a.ID != "spiffe://"+trustDomain+"/spire/agent/keelson_tpm/"+hash {
				continue
			}
			for _, want := range []string{"keelson_tpm:ek:sha256:" + hash, "keelson_tpm:ref:prod", "keelson_tpm:ima:clean", "keelson_tpm:tag:country:de", "keelson_tpm:secureboot:false"} {
				if !slices.Contains(a.Selectors, want) {
					t.Errorf("agent %s has selectors %v, without %s", a.ID, a.Selectors, want)
				}
			}
			return a.ID
		}
	}
	return ""
}

func (r *rig) trusted(ctx context.Context, t *testing.T, m machine, image *vmboot.Image) {
	vm := r.boot(ctx, t, m, "again", image, false)
	if got := r.verdict(ctx, t, vm, m); got.Outcome != audit.Trusted || got.Reference != "prod" {
		t.Errorf("the server's verdict: %+v", got)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // between the verdict and what the agent makes of it
	defer cancel()
	must(t, vm.Until(ctx, "Node attestation was successful"))
	if text, err := vm.Text(); err != nil || strings.Contains(text, "no evidence for the server") {
		t.Errorf("the plugin logs a failure of an attestation that succeeded (%v):\n%s", err, text)
	}
	if r.agent(ctx, t, m) == "" {
		t.Error("the server has no agent of that TPM")
	}
}

// updated does what an operator does with an update of kernel, initrd and command line: the set comes first, then the reboot.
func (r *rig) updated(ctx context.Context, t *testing.T) {
	image := r.build(ctx, t, "update", vmboot.Changes{
		Kernel: []byte{'2'}, CommandLine: "updated=1", Files: map[string]string{"etc/release": "2\n"},
	})
	out, err := exec.CommandContext(ctx, r.keelson, "reference", "predict", "--dir", r.path("prod"), "--set", r.path("references", "prod.yaml"),
		"--name", "prod-2", "-o", r.path("prod-2.yaml"), "--uki", image.Unified).CombinedOutput()
	if err != nil {
		t.Fatalf("keelson reference predict: %v\n%s", err, out)
	}
	t.Logf("%s", out)
	must(t, os.Rename(r.path("prod-2.yaml"), r.path("references", "prod-2.yaml")))
	m := r.machine(ctx, t, "update-1")
	vm := r.boot(ctx, t, m, "update-1", image, false)
	if got := r.verdict(ctx, t, vm, m); got.Outcome != audit.Trusted || got.Reference != "prod-2" {
		t.Errorf("the server's verdict: %+v", got)
	}
}

// told is what a refused machine's operator reads.
func told(e audit.Entry) string {
	var reasons []string
	for _, r := range e.Refusals {
		reasons = append(reasons, r.Reason)
	}
	return strings.Join(append(reasons, e.Error), "\n")
}

func checks(e audit.Entry) (names []string) {
	for _, r := range e.Refusals {
		names = append(names, r.Check)
	}
	return names
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
