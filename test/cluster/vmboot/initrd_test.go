package vmboot

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

// The kernel is not the only one to read these archives.
func TestArchivesAreReadByCpio(t *testing.T) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox, which has cpio, is not installed")
	}
	first := archive(map[string]file{
		"init":        {mode: modeProgram, content: []byte("#!/bin/sh\n")},
		"bin/sh":      {mode: modeLink, content: []byte("busybox")},
		"etc/a/b/odd": {mode: modeFile, content: []byte("odd")},
		"tmp":         {mode: modeDir},
	})
	if len(first)%4 != 0 {
		t.Errorf("%d bytes: an archive that follows would not be found", len(first))
	}
	cmd := exec.Command(path, "cpio", "-tv")
	cmd.Stdin = bytes.NewReader(first)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		got = append(got, f[0]+" "+strings.Join(f[5:], " "))
	}
	want := []string{
		"drwxr-xr-x bin", "lrwxrwxrwx bin/sh -> busybox", "drwxr-xr-x etc", "drwxr-xr-x etc/a", "drwxr-xr-x etc/a/b",
		"-rw-r--r-- etc/a/b/odd", "-rwxr-xr-x init", "drwxr-xr-x tmp",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestAKernelWithoutADriverIsRefused(t *testing.T) {
	k := &kernel{modules: map[string]string{}}
	if _, err := k.load("virtio_pci"); err == nil || !strings.Contains(err.Error(), "no module virtio_pci") {
		t.Errorf("got %v", err)
	}
}
