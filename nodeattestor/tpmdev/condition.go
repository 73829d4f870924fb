package tpmdev

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// busy reports whether the TPM asks to have the very same command again
// (TPM 2.0 Part 2, section 6.6.3).
func busy(rc tpm2.TPMRC) bool {
	switch rc {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
		return true
	default:
		return false
	}
}

// conditions are response codes that tell the state of the TPM, whatever the command
// was (TPM 2.0 Part 2, sections 6.6.2 and 6.6.3; Part 1, section 19.8 for lockout and
// 12.4 for failure mode), and what to do about each.
var conditions = []struct {
	rc   tpm2.TPMRC
	what string
}{
	{tpm2.TPMRCFailure, "the TPM is in failure mode and takes no commands; power the machine off and on, and replace the TPM if that does not help"},
	{tpm2.TPMRCInitialize, "the firmware did not start the TPM; enable it in the firmware's setup, or power the machine off and on"},
	{tpm2.TPMRCReboot, "the TPM asks for a reboot before it goes on"},
	{tpm2.TPMRCUpgrade, "the TPM's firmware is being replaced; let that end and reboot"},
	{tpm2.TPMRCDisabled, "the command is disabled in this TPM; see the firmware's setup"},
	{tpm2.TPMRCHierarchy, "a hierarchy of the TPM is disabled; enable it in the firmware's setup and reboot"},
	{tpm2.TPMRCLockout, "the TPM is locked after wrong authorisations (dictionary attack protection); wait until it recovers, or reset it with the lockout authorisation; keelson tpm info shows the times"},
	{tpm2.TPMRCNVUnavailable, "the TPM's NV memory cannot be written now; try again later, power the machine off and on if it stays so"},
	{tpm2.TPMRCObjectMemory, noRoom},
	{tpm2.TPMRCObjectHandles, noRoom},
	{tpm2.TPMRCSessionMemory, noRoom},
	{tpm2.TPMRCSessionHandles, noRoom},
	{tpm2.TPMRCMemory, noRoom},
	{tpm2.TPMRCContextGap, noRoom},
	{tpm2.TPMRCTooManyContexts, noRoom},
}

const noRoom = "the TPM has no room for another key or session, because another program holds some; have all programs use the resource manager (/dev/tpmrm0)"

// condition explains a response code that says what is wrong with the TPM itself; nil
// for all others, which are the caller's to understand.
func condition(rc tpm2.TPMRC) error {
	for _, c := range conditions {
		if errors.Is(rc, c.rc) {
			return fmt.Errorf("tpmdev: %s: %w", c.what, rc)
		}
	}
	return nil
}
