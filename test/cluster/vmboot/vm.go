package vmboot

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/keelson-project/keelson/test/cluster"
)

// The SPIRE server as the guest sees it: QEMU hands a connection to this address to the host's server, and takes no other.
const (
	serverAddress = "10.0.2.100"
	serverPort    = 8081
)

// evidenceDisk is the size of the disk that a golden guest writes its evidence to, in bytes.
const evidenceDisk = 4 << 20

// VMOptions says what machine to start.
type VMOptions struct {
	// Name is unique in the group; logs have it in their names.
	Name string
	// Dir holds its firmware variables and disks, and sockets: short enough for a Unix socket in it.
	Dir   string
	Image *Image
	TPM   *TPM
	// Server is where its agent attests, in TrustDomain. Without one, no agent runs: the guest writes its evidence and is done.
	Server      *cluster.SpireServer
	TrustDomain string
	// Tag is the machine's signed asset tag; nil is none.
	Tag []byte
	// Node has a guest without a server run what a node runs (NodePrograms made the disk), "" for none: containerd, kubelet, and a
	// container that runc starts. Pod has that container do its worst. Elsewhere has its volume at ProgramsVolume on another file
	// system than pods' own.
	Node           string
	Pod, Elsewhere bool
	// SecureBoot has firmware enforce it, with Microsoft's keys, by which Debian's shim is signed.
	SecureBoot bool
	// Golden has the guest write its evidence once its agent has run; see [VM.Evidence].
	Golden bool
}

// VM is a running machine.
type VM struct {
	// Process is QEMU. Process.Log is QEMU's own; the guest's console is in Console.
	Process *cluster.Process
	// Console is the path of what kernel, init and agent print.
	Console string

	swtpm    *cluster.Process
	evidence string
}

// Start starts a machine in group g and returns once QEMU runs; how far the guest comes is for the caller to see, at the
// SPIRE server or on the console.
func (k *Kit) Start(ctx context.Context, g *cluster.Group, o VMOptions) (*VM, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("vmboot: %s: %w", o.Name, err)
	}
	vm := &VM{Console: filepath.Join(o.Dir, "console.log"), evidence: filepath.Join(o.Dir, "evidence.img")}
	variables, err := os.ReadFile(strings.Replace(k.firmware(o), "CODE", "VARS", 1))
	if err != nil {
		return nil, fmt.Errorf("vmboot: firmware: %w", err)
	}
	config, err := o.configDisk()
	if err != nil {
		return nil, err
	}
	programs := k.collectPrograms
	if o.Server != nil {
		programs = k.agentPrograms
	}
	disk := o.Node
	if disk == "" {
		disk, err = programs(ctx)
	}
	if err != nil {
		return nil, err
	}
	for name, content := range map[string][]byte{"vars.fd": variables, "config.img": config, "evidence.img": make([]byte, evidenceDisk), "console.log": nil} {
		if err := os.WriteFile(filepath.Join(o.Dir, name), content, 0o600); err != nil {
			return nil, fmt.Errorf("vmboot: %s: %w", o.Name, err)
		}
	}
	socket := filepath.Join(o.Dir, "tpm.sock")
	vm.swtpm, err = g.Start(cluster.Command{Name: "swtpm-" + o.Name, Path: k.system["swtpm"], Args: []string{
		"socket", "--tpm2", "--tpmstate", "dir=" + filepath.Join(o.TPM.dir, "state"), "--ctrl", "type=unixio,path=" + socket,
	}})
	if err != nil {
		return nil, err
	}
	ready, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	// Not by connecting: swtpm serves one client, and ends with it.
	if err := vm.swtpm.Until(ready, func(context.Context) error { _, err := os.Stat(socket); return err }); err != nil {
		return nil, err
	}
	args := k.arguments(o, disk, socket)
	if o.Node != "" {
		pods, err := k.podsDisk(ctx, o.Dir)
		if err != nil {
			return nil, err
		}
		args = append(args, "-drive", "if=none,id=pods,format=raw,file="+pods, "-device", "virtio-blk-pci,drive=pods") // vde
	}
	vm.Process, err = g.Start(cluster.Command{Name: "qemu-" + o.Name, Path: k.system["qemu"], Args: args})
	if err != nil {
		vm.swtpm.Stop(time.Second)
		return nil, err
	}
	return vm, nil
}

// firmware is the file of the firmware's code; that of its variables is beside it.
func (k *Kit) firmware(o VMOptions) string {
	if o.SecureBoot {
		return strings.Replace(k.system["ovmf"], ".fd", ".ms.fd", 1)
	}
	return k.system["ovmf"]
}

// arguments describe the machine. All but the disks' and sockets' paths is the same for every machine: RAM, processors and
// firmware settings are measured into PCR 0 and 1.
func (k *Kit) arguments(o VMOptions, programs, tpmSocket string) []string {
	forward := ""
	if o.Server != nil {
		forward = fmt.Sprintf(",guestfwd=tcp:%s:%d-cmd:%s nc %s %d", serverAddress, serverPort, k.system["busybox"], o.Server.Host, o.Server.Port)
	}
	machine := []string{"-machine", "q35"}
	if o.SecureBoot {
		machine = []string{"-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on"}
	}
	memory := "512"
	if o.Node != "" {
		memory = "1536"
	}
	args := append(machine,
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", memory,
		"-display", "none", "-nodefaults", "-no-reboot",
		"-chardev", "file,id=console,path="+filepath.Join(o.Dir, "console.log"), "-serial", "chardev:console",
		"-drive", "if=pflash,format=raw,readonly=on,file="+k.firmware(o),
		"-drive", "if=pflash,format=raw,file="+filepath.Join(o.Dir, "vars.fd"),
		"-chardev", "socket,id=tpm,path="+tpmSocket, "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm0",
		"-netdev", "user,id=net,restrict=on"+forward,
		"-device", "virtio-net-pci,netdev=net,romfile=",
	)
	disks := []string{o.Image.path, programs, filepath.Join(o.Dir, "config.img"), filepath.Join(o.Dir, "evidence.img")}
	for i, disk := range disks { // vda, vdb, vdc, vdd
		readonly, boot := "on", ""
		switch i {
		case 0:
			boot = ",bootindex=0"
		case len(disks) - 1:
			readonly = "off"
		}
		args = append(args,
			"-drive", fmt.Sprintf("if=none,id=disk%d,format=raw,readonly=%s,file=%s", i, readonly, disk),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d%s", i, boot))
	}
	return args
}

// configDisk is what differs from run to run, and is not measured: data only, no programs.
func (o VMOptions) configDisk() ([]byte, error) {
	if o.Server == nil {
		return o.nodeDisk()
	}
	bundle, err := os.ReadFile(o.Server.Bundle)
	if err != nil {
		return nil, fmt.Errorf("vmboot: %s: %w", o.Name, err)
	}
	files := map[string][]byte{"bundle.pem": bundle, "agent.conf": []byte(o.agentConfig())}
	if o.Tag != nil {
		files["tag.json"] = o.Tag
	}
	if o.Golden {
		files["collect"] = nil
	}
	return tarOf(0o600, files)
}

// nodeDisk is the same for a guest without a server.
func (o VMOptions) nodeDisk() ([]byte, error) {
	files := map[string][]byte{"collect": nil}
	if o.Node == "" {
		return tarOf(0o600, files)
	}
	files["node"] = nil
	if o.Elsewhere {
		files["elsewhere"] = nil
	}
	var args []string
	if o.Pod {
		args = []string{"-worst", "-data", DataVolume, "-programs", ProgramsVolume}
	}
	var err error
	if files["pod/config.json"], err = containerConfig(args...); err != nil {
		return nil, err
	}
	return tarOf(0o600, files)
}

// agentConfig is the agent's configuration as README.md shows it; the TPM and the logs are where Linux has them.
func (o VMOptions) agentConfig() string {
	tag := ""
	if o.Tag != nil {
		tag = `tag_document = "/run/keelson/tag.json"`
	}
	return fmt.Sprintf(`agent {
  server_address = %q
  server_port = %d
  socket_path = "/run/keelson/api.sock"
  data_dir = "/run/keelson/data"
  trust_bundle_path = "/run/keelson/bundle.pem"
  trust_domain = %q
  log_level = "DEBUG"
}
plugins {
  KeyManager "memory" { plugin_data {} }
  NodeAttestor "keelson_tpm" {
    plugin_cmd = "/opt/keelson/%s"
    plugin_data {
      data_dir = "/run/keelson/data"
      %s
    }
  }
  WorkloadAttestor "unix" { plugin_data {} }
}
`, serverAddress, serverPort, o.TrustDomain, filepath.Base(pluginCommand), tag)
}

// Text is what the guest has printed so far.
func (vm *VM) Text() (string, error) {
	text, err := os.ReadFile(vm.Console)
	return string(text), err
}

// Until waits until the console has the text. It gives up when QEMU ends or ctx does; the end of the console is in the error.
func (vm *VM) Until(ctx context.Context, text string) error {
	return vm.Wait(ctx, func(context.Context) error {
		have, err := vm.Text()
		if err == nil && !strings.Contains(have, text) {
			err = fmt.Errorf("vmboot: the console has no %q", text)
		}
		return err
	})
}

// Wait waits until check returns nil, as Until does.
func (vm *VM) Wait(ctx context.Context, check func(context.Context) error) error {
	err := vm.Process.Until(ctx, check)
	if err == nil {
		return nil
	}
	text, readErr := vm.Text()
	const most = 4000
	return errors.Join(fmt.Errorf("%w\nthe guest's console:\n%s", err, text[max(0, len(text)-most):]), readErr)
}

// Evidence waits for the evidence of a golden guest and puts its files into dir, as `keelson reference capture` reads them.
func (vm *VM) Evidence(ctx context.Context, dir string) (err error) {
	if err := vm.Until(ctx, "vmboot: evidence written"); err != nil {
		return err
	}
	f, err := os.Open(vm.evidence)
	if err != nil {
		return fmt.Errorf("vmboot: evidence: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("vmboot: evidence: %w", err)
		}
		if h.Typeflag != tar.TypeReg || !filepath.IsLocal(h.Name) || filepath.Dir(filepath.Clean(h.Name)) != "." {
			continue // the folder of the attestation key
		}
		content, err := io.ReadAll(io.LimitReader(r, evidenceDisk))
		if err != nil {
			return fmt.Errorf("vmboot: evidence: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(h.Name)), content, 0o600); err != nil {
			return fmt.Errorf("vmboot: evidence: %w", err)
		}
	}
}

// Close switches the machine off. Its TPM can start another.
func (vm *VM) Close() {
	vm.Process.Stop(3 * time.Second)
	vm.swtpm.Stop(3 * time.Second) // it writes its state down when it is asked to end
}
