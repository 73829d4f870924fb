package node_test

import (
	"context"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/parts"
)

func TestARecordedBootGivesATPMTheSamePCRs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	root, err := parts.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "keelson-tpm-") // t.TempDir is too long for a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	g := cluster.NewGroup(dir)
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	tpm, err := node.StartTPM(ctx, g, t.Output(), "one", filepath.Join(dir, "tpm"))
	if err != nil {
		t.Fatal(err)
	}
	boot := filepath.Join(root, "test", "vectors", "measured-boots", "good")
	ima := read(t, filepath.Join(boot, "binary_runtime_measurements"))
	if err := node.Boot(ctx, tpm.Device, read(t, filepath.Join(boot, "binary_bios_measurements")), ima); err != nil {
		t.Fatal(err)
	}
	sel := nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}}
	values, err := tpm.Device.PCRRead(ctx, sel)
	if err != nil {
		t.Fatal(err)
	}
	recorded := strings.ToLower(string(read(t, filepath.Join(boot, "pcrs.txt"))))
	for pcr, value := range values {
		if !strings.Contains(recorded, hex.EncodeToString(value)) {
			t.Errorf("PCR %d is %x, which the machine did not have", pcr, value)
		}
	}
	t.Run("a file that is run afterwards is in the list and in PCR 10 alone", func(t *testing.T) {
		list := filepath.Join(dir, "ima")
		if err := os.WriteFile(list, ima, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := node.RunFile(ctx, tpm.Device, list, "/usr/bin/intruder", []byte("#!/bin/sh\n")); err != nil {
			t.Fatal(err)
		}
		after, err := tpm.Device.PCRRead(ctx, sel)
		if err != nil {
			t.Fatal(err)
		}
		for pcr := range values {
			if same := string(after[pcr]) == string(values[pcr]); same == (pcr == 10) {
				t.Errorf("PCR %d: unchanged is %t", pcr, same)
			}
		}
		if !strings.Contains(string(read(t, list)), "/usr/bin/intruder") {
			t.Error("the list does not name the file")
		}
	})
	if err := tpm.Close(); err != nil {
		t.Error(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
