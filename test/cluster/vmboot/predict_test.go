package vmboot_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/appraise"
	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/predict"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/vmboot"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// What is predicted from the files of a boot is what firmware, boot loaders, stub and kernel then
// measure, event for event, in PCRs 4, 9, 11, 12 and 13, and in 8 with GRUB. Firmware is taken from
// another boot, of the golden image.
func TestBootsArePredictedFromTheirFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("boots virtual machines in emulation, which -short leaves out")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
	defer cancel()
	p := newPredictor(ctx, t)
	golden := p.boot(ctx, t, "unified", p.build(ctx, t, "unified", vmboot.Changes{}))
	more := vmboot.Changes{Sections: map[string]string{".pcrpkey": "key\n", ".pcrsig": "{}\n"}, CommandLine: "a=b"}
	for name, c := range map[string]vmboot.Changes{
		"more-sections":  more,
		"sdboot-unified": {Loader: vmboot.SystemdBootUnified, CommandLine: "a=b"},
		"sdboot": {Loader: vmboot.SystemdBoot, CommandLine: "a=b",
			Files: map[string]string{"etc/motd": "hello"}},
	} {
		t.Run(name, func(t *testing.T) {
			image := p.build(ctx, t, name, c)
			predicted, err := golden.base.Predict(change(t, image))
			must(t, err)
			p.compare(t, predicted, p.boot(ctx, t, name, image))
		})
	}
	for name, secure := range map[string]bool{"grub": false, "grub-secure": true} {
		t.Run(name, func(t *testing.T) { p.updatesGRUB(ctx, t, name, secure) })
	}
}

// updatedConfig is another configuration: another entry of the menu, chosen by its identifier, starts another kernel.
func updatedConfig(line string) string {
	return `if [ -s $prefix/grubenv ]; then load_env; fi
set default=update
set timeout="0" # at once
function load_modules { insmod gzio; }
function entry {
  if [ "$1" != two ]; then set extra=c=d; else set extra='e=f  g=h'; fi
}
menuentry 'Keelson' --class keelson --id keelson {
	linuxefi	/keelson/vmlinuz ` + line + `
}
submenu 'More' --id more { menuentry 'None' { halt; } }
menuentry "Keelson, updated" --unrestricted --id "update" {
	load_modules; entry two
	linuxefi	/keelson/vmlinuz-2 ` + line + ` $extra
	initrdefi	/keelson/initrd.img
}
`
}

// updatesGRUB predicts an update by its texts, and one by another configuration.
func (p *predictor) updatesGRUB(ctx context.Context, t *testing.T, name string, secure bool) {
	p.secure = secure
	before := p.build(ctx, t, name, vmboot.Changes{Loader: vmboot.GRUB})
	machine := p.boot(ctx, t, name, before)
	change := vmboot.Changes{Loader: vmboot.GRUB, CommandLine: "a=b", Files: map[string]string{"etc/motd": "hello"}}
	if !secure {
		change.Kernel = []byte("!") // which its signature does not cover
		texts := p.build(ctx, t, name+"-texts", change)
		g := replaced(t, before, texts)
		g.Texts = []predict.Substitution{{Old: before.CommandLine, New: texts.CommandLine}}
		predicted, err := machine.base.Predict(g)
		must(t, err)
		p.compare(t, predicted, p.boot(ctx, t, name+"-texts", texts))
	}
	kernel := predict.File{Name: "vmlinuz-2", Data: append(read(t, before.Kernel).Data, change.Kernel...)}
	change.GRUBConfig, change.Partition = updatedConfig, map[string][]byte{"keelson/vmlinuz-2": kernel.Data}
	after := p.build(ctx, t, name+"-config", change)
	g := replaced(t, before, after)
	g.Files[0].New = kernel
	predicted, err := machine.base.Predict(g)
	must(t, err)
	booted := p.boot(ctx, t, name+"-config", after)
	p.compare(t, predicted, booted)
	if want := "/keelson/vmlinuz-2 " + after.CommandLine + " e=f g=h"; predicted.CommandLine != want {
		t.Errorf("the command line is %q, want %q; the kernel says %q", predicted.CommandLine, want, booted.bundle.CommandLine)
	}
}

// change is what boots an image that GRUB does not start.
func change(t *testing.T, i *vmboot.Image) predict.Change {
	t.Helper()
	var loaders []predict.File
	for _, name := range i.Loaders {
		loaders = append(loaders, read(t, name))
	}
	if i.Unified != "" {
		return predict.UKI{Loaders: loaders, Image: read(t, i.Unified)}
	}
	return predict.Linux{Loaders: loaders, Kernel: read(t, i.Kernel), Initrds: []predict.File{read(t, i.Initrd)},
		CommandLine: i.CommandLine}
}

// replaced are the files that change from one image with GRUB to another.
func replaced(t *testing.T, before, after *vmboot.Image) predict.GRUB {
	t.Helper()
	var g predict.GRUB
	for _, pair := range [][2]string{{before.Kernel, after.Kernel}, {before.Initrd, after.Initrd}, {before.Config,
		after.Config}} {
		g.Files = append(g.Files, predict.Replacement{Old: read(t, pair[0]), New: read(t, pair[1])})
	}
	return g
}

func read(t *testing.T, name string) predict.File {
	t.Helper()
	data, err := os.ReadFile(name)
	must(t, err)
	return predict.File{Name: name, Data: data}
}

// predictor boots machines without a server.
type predictor struct {
	dir   string
	kit   *vmboot.Kit
	group *cluster.Group
	tpm   *vmboot.TPM
	// secure has the next boots enforce secure boot.
	secure bool
	// node, pod and elsewhere are as in VMOptions.
	node           string
	pod, elsewhere bool
}

func newPredictor(ctx context.Context, t *testing.T) *predictor {
	dir, err := os.MkdirTemp("", "vmboot-") // t.TempDir is too long for a Unix socket
	must(t, err)
	p := &predictor{dir: dir, group: cluster.NewGroup(dir)}
	t.Cleanup(func() {
		err := p.group.Close()
		if keep := os.Getenv("KEEP"); keep != "" {
			t.Log(exec.Command("cp", "-a", dir, keep).CombinedOutput())
		}
		if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	p.kit, err = vmboot.Gather(ctx, t.Output(), dir)
	if errors.Is(err, vmboot.ErrUnavailable) {
		t.Skipf("needs QEMU, firmware and a kernel: %v", err)
	}
	must(t, err)
	ca, err := tpmtest.NewCA()
	must(t, err)
	p.tpm, err = p.kit.MakeTPM(ctx, p.group, t.Output(), "tpm", filepath.Join(dir, "tpm"), ca, nil)
	must(t, err)
	return p
}

func (p *predictor) build(ctx context.Context, t *testing.T, name string, c vmboot.Changes) *vmboot.Image {
	t.Helper()
	image, err := p.kit.Build(ctx, filepath.Join(p.dir, "image-"+name), c)
	must(t, err)
	return image
}

// booted is what a machine measured.
type booted struct {
	base   predict.Base
	bundle appraise.Bundle
}

// captured is the set of a golden machine, whose quote must prove its logs.
func (b booted) captured(t *testing.T) reference.Set {
	t.Helper()
	set, err := appraise.Capture("captured", b.bundle, ima.Options{})
	must(t, err)
	return set
}

// boot boots an image and reads its evidence. The machine is off again afterwards.
func (p *predictor) boot(ctx context.Context, t *testing.T, name string, image *vmboot.Image) booted {
	t.Helper()
	vm, err := p.kit.Start(ctx, p.group, vmboot.VMOptions{Name: name, Dir: filepath.Join(p.dir, "vm-"+name),
		Image: image, TPM: p.tpm, SecureBoot: p.secure, Node: p.node, Pod: p.pod, Elsewhere: p.elsewhere})
	must(t, err)
	defer vm.Close()
	dir := filepath.Join(p.dir, "evidence-"+name)
	must(t, os.Mkdir(dir, 0o700))
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	begun := time.Now()
	must(t, vm.Evidence(ctx, dir))
	t.Logf("%s: evidence after %.1f s", name, time.Since(begun).Seconds())
	file := func(name string) []byte { return read(t, filepath.Join(dir, name)).Data }
	b := booted{bundle: appraise.Bundle{
		Attest: file("quote.attest"), Signature: file("quote.sig"), AK: file("ak.tpmpub"),
		EventLog: file("binary_bios_measurements"),
		IMALog:   file("binary_runtime_measurements"), CommandLine: string(file("cmdline.txt")),
	}}
	log, err := eventlog.Parse(b.bundle.EventLog)
	must(t, err)
	b.base, err = predict.NewBase(log, nodeclaim.SHA256)
	must(t, err)
	return b
}

// compare demands that a boot measured what was predicted, and that the facts are those of its
// capture.
func (p *predictor) compare(t *testing.T, predicted predict.Prediction, b booted) {
	t.Helper()
	b.captured(t)
	differences, err := predicted.Compare(b.base)
	must(t, err)
	for _, d := range differences {
		t.Error(d)
	}
	if len(predicted.Unknown) > 0 {
		t.Errorf("not predicted: %v", predicted.Unknown)
	}
	for _, pcr := range []int{4, 8, 9, 11, 12, 13} {
		if value, ok := predicted.PCRs[pcr]; ok {
			t.Logf("PCR %d as predicted: %x", pcr, value)
		}
	}
	for _, line := range predicted.Notes {
		t.Logf("note: %s", line)
	}
}
