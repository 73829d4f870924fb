package vmboot_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/appraise"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/cluster/vmboot"
)

// podRules are what an operator adds to a captured set of a node whose pods' files do not matter: the
// directories of pods' volumes and a container's own /dev, a file that kubelet makes, and what has no
// directory.
const podRules = "  ignoreDirectories: [" + vmboot.DataVolume + ", /dev]\n  ignoreFiles: [/etc/hosts]\n  bareNames: allow\n"

// On a node with the policy that the project ships, and its optional rules for pods, the kernel
// measures containerd, runc and kubelet. A container of a pod, with the rights that a pod has,
// cannot make the node untrusted where policy and set say that pods' files do not matter. One byte
// of runc can. So can a pod with a volume that lies where the host has runc, on a file system that
// the policy does not leave out: the kernel tells the path that the container sees.
func TestWhatANodeRunsIsMeasured(t *testing.T) {
	if testing.Short() {
		t.Skip("boots virtual machines in emulation, which -short leaves out")
	}
	ctx, cancel := context.WithTimeout(t.Context(),
		40*time.Minute) // containerd and kubelet are built first where they are not there
	defer cancel()
	p := newPredictor(ctx, t)
	policy := string(read(t, "../../../examples/ima-policy/ima-policy").Data)
	for _, rule := range []string{"dont_measure fsmagic=0x794c7630", "dont_measure fsuuid=" + vmboot.PodsUUID,
		"dont_measure func=MMAP_CHECK fsmagic=0x01021994"} {
		if !strings.Contains(policy, "\n#optional "+rule+"\n") {
			t.Fatalf("the policy has no optional rule %s", rule)
		}
		policy = strings.Replace(policy, "#optional "+rule, rule, 1)
	}
	image := p.build(ctx, t, "node", vmboot.Changes{
		Files:     map[string]string{"etc/ima/ima-policy": policy},
		Partition: map[string][]byte{"pod/direct.bin": bytes.Repeat([]byte("x"), 8192)},
	})
	var err error
	p.node, err = p.kit.NodePrograms(ctx, "node.img", 0)
	must(t, err)
	golden := p.boot(ctx, t, "node", image)
	p.says(t, "node", "vmboot: pod ran")
	strict := golden.captured(t)
	captured := string(strict.Marshal())
	for _, path := range []string{"/etc/ima/ima-policy", "/usr/bin/containerd", "/usr/bin/containerd-shim-runc-v2",
		"/usr/sbin/runc", "/usr/bin/kubelet"} {
		if !strings.Contains(captured, "\n    "+path+":\n") {
			t.Errorf("%s was not measured; the set of the node:\n%s", path, captured)
		}
	}
	set, err := reference.ParseSet([]byte(strings.Replace(captured, "\n  violations:", "\n"+podRules+"  violations:",
		1)))
	must(t, err)

	t.Run("a container does its worst", func(t *testing.T) {
		p.pod = true
		defer func() { p.pod = false }()
		b := p.boot(ctx, t, "pod", image)
		p.says(t, "pod", "vmboot: pod ran")
		if refusals := appraised(t, b, set); len(refusals) > 0 {
			t.Errorf("the node is untrusted by its pod: %v", refusals)
		}
		// It does have an effect: a set without these rules refuses each of its files.
		var got []string
		for _, r := range appraised(t, b, strict) {
			got = append(got, r.Reason)
		}
		all := strings.Join(got, "\n")
		for _, want := range []string{
			"file /data/boot/pod/direct.bin has unknown content",
			"boot_aggregate", "file /data/unknown has digest", "file /dev/unknown has digest", "memfd:pod",
		} {
			if !strings.Contains(all, want) {
				t.Errorf("no refusal says %q:\n%s", want, all)
			}
		}
		if strings.Contains(all, "file /unknown ") || strings.Contains(all, "/usr/sbin/runc") || strings.Contains(all, "is a violation") {
			t.Errorf("a program of an overlay, or of pods' own file system, was measured:\n%s", all)
		}
	})
	t.Run("a container has a file where the host has runc, on another file system", func(t *testing.T) {
		p.pod, p.elsewhere = true, true
		defer func() { p.pod, p.elsewhere = false, false }()
		b := p.boot(ctx, t, "path", image)
		p.says(t, "path", "vmboot: pod ran")
		refusedByRunc(t, appraised(t, b, set))
	})
	t.Run("one byte of runc is changed", func(t *testing.T) {
		p.node, err = p.kit.NodePrograms(ctx, "node-runc.img", 1)
		must(t, err)
		refusedByRunc(t, appraised(t, p.boot(ctx, t, "runc", image), set))
		p.says(t, "runc", "vmboot: pod ran")
	})
}

// refusedByRunc demands that a node is refused by the path of runc, and by nothing else but violations.
func refusedByRunc(t *testing.T, refusals nodeclaim.Refusals) {
	t.Helper()
	files := 0
	for _, r := range refusals {
		switch {
		case r.Check == "ima.file" && strings.HasPrefix(r.Reason, "file /usr/sbin/runc has digest sha256:"):
			files++
		case r.Check != "ima.violation":
			t.Errorf("%v", r)
		}
	}
	if files != 1 {
		t.Errorf("%v", refusals)
	}
}

// says demands that a machine's console has a text.
func (p *predictor) says(t *testing.T, name, text string) {
	t.Helper()
	console, err := os.ReadFile(filepath.Join(p.dir, "vm-"+name, "console.log"))
	must(t, err)
	if !strings.Contains(string(console), text) {
		t.Errorf("the console of %s does not say %q:\n%s", name, text, console[max(0, len(console)-3000):])
	}
}

// appraised is why a set refuses a boot.
func appraised(t *testing.T, b booted, set reference.Set) nodeclaim.Refusals {
	t.Helper()
	sets, err := reference.NewSets(set)
	must(t, err)
	_, _, refusals := appraise.Offline(b.bundle, []byte("golden"), sets, ima.Options{}, time.Now())
	return refusals
}
