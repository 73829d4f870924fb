package tpmdev

import (
	"testing"
	"testing/fstest"
)

func TestKernelSaysThatADeviceIsATPM12(t *testing.T) {
	sysfs := fstest.MapFS{
		"tpm0/tpm_version_major": {Data: []byte("1\n")},
		"tpm1/tpm_version_major": {Data: []byte("2\n")},
		"tpm2/tpm_version_major": {Data: []byte("")},
	}
	for device, want := range map[string]bool{
		"/dev/tpm0": true, "/dev/tpmrm0": true, "/dev/tpmrm1": false, "/dev/tpm2": false, "/dev/tpmrm3": false, "/run/tpm.sock": false, "/": false,
	} {
		if got := isTPM12(sysfs, device); got != want {
			t.Errorf("%s: %t, want %t", device, got, want)
		}
	}
}
