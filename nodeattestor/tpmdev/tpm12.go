package tpmdev

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"
)

// ErrTPM12 says that the TPM is of version 1.2, which is not supported: see
// nodeattestor/design/2026-11-26-no-tpm-1.2.md.
var ErrTPM12 = errors.New("tpmdev: this is a TPM 1.2, which can attest with SHA-1 only and is not supported; " +
	"switch it to TPM 2.0 in the firmware's setup where the chip can be both, else attest on another machine")

// tagResponse12 is TPM_TAG_RSP_COMMAND, with which a TPM 1.2 answers what it does not
// know (TPM Main Part 2, section 6). A TPM 2.0 uses it, as TPM_ST_RSP_COMMAND, only
// for a command whose tag is no TPM 2.0 one, and none such is sent here (TPM 2.0 Part 2,
// section 6.9).
const tagResponse12 = 0x00C4

// isTPM12 reports whether the kernel says of a device, which may be missing, that its TPM
// is a 1.2: sysfs is /sys/class/tpm (Linux, Documentation/ABI/stable/sysfs-class-tpm,
// tpm_version_major). There is no /dev/tpmrm0 then, only /dev/tpm0.
func isTPM12(sysfs fs.FS, device string) bool {
	name := path.Base(device)
	if number, ok := strings.CutPrefix(name, "tpmrm"); ok {
		name = "tpm" + number
	}
	f, err := sysfs.Open(path.Join(name, "tpm_version_major"))
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	version, err := io.ReadAll(io.LimitReader(f, 16))
	return err == nil && strings.TrimSpace(string(version)) == "1"
}
