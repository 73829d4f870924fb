package tpmdev

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Info is what a TPM says about itself, for people. Nothing vouches for it.
type Info struct {
	Manufacturer string `json:"manufacturer"` // vendor id, as in "IFX"
	Vendor       string `json:"vendor"`       // the vendor's own string
	Firmware     string `json:"firmware"`     // four numbers of 16 bits
	Revision     string `json:"revision"`     // of the TPM 2.0 library specification, as in "1.38"
	// Keys are the algorithms of keys that it makes: "rsa", "ecc".
	Keys []string `json:"keys"`

	OwnerAuth       bool `json:"ownerAuth"` // the hierarchy has an authorisation
	EndorsementAuth bool `json:"endorsementAuth"`
	LockoutAuth     bool `json:"lockoutAuth"`
	StorageEnabled  bool `json:"storageEnabled"` // the owner's hierarchy
	EndorsementOn   bool `json:"endorsementEnabled"`

	Lockout Lockout `json:"lockout"`
	Clock   Clock   `json:"clock"`
}

// Lockout is the state of the dictionary attack protection (TPM 2.0 Part 1, section 19.8).
type Lockout struct {
	InLockout   bool   `json:"inLockout"`
	Failures    uint32 `json:"failures"`
	MaxFailures uint32 `json:"maxFailures"`
	// Interval is after how many seconds one failure is forgotten.
	Interval uint32 `json:"intervalSeconds"`
	// Recovery is after how many seconds the lockout authorisation may be tried again.
	Recovery uint32 `json:"recoverySeconds"`
}

// Clock is TPMS_TIME_INFO (TPM 2.0 Part 2, section 10.11): how long the TPM has run, and
// its counters of resets, as quotes report them.
type Clock struct {
	Time     time.Duration `json:"upNanoseconds"`
	Resets   uint32        `json:"resetCount"`
	Restarts uint32        `json:"restartCount"`
	Safe     bool          `json:"safe"`
}

// properties reads a group of 32-bit properties (TPM 2.0 Part 3, section 30.2).
func (d *Device) properties(first tpm2.TPMPT) (map[tpm2.TPMPT]uint32, error) {
	out := map[tpm2.TPMPT]uint32{}
	for next, end := first, first+0x100; next < end; {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(next), PropertyCount: 64}.Execute(d.now.tpm)
		if err != nil {
			return nil, fmt.Errorf("tpmdev: read properties from 0x%x: %w", uint32(next), err)
		}
		list, err := rsp.CapabilityData.Data.TPMProperties()
		if err != nil {
			return nil, fmt.Errorf("tpmdev: read properties from 0x%x: %w", uint32(next), err)
		}
		before := next
		for _, p := range list.TPMProperty {
			if p.Property >= before {
				out[p.Property] = p.Value
				next = max(next, p.Property+1)
			}
		}
		if !rsp.MoreData || next == before {
			break
		}
	}
	return out, nil
}

// Info reads what the TPM says about itself.
func (d *Device) Info(ctx context.Context) (Info, error) {
	var out Info
	err := d.do(ctx, func() error {
		p, err := d.properties(tpm2.TPMPTFamilyIndicator)
		if err != nil {
			return err
		}
		out.fixed(p)
		if p, err = d.properties(tpm2.TPMPTPermanent); err != nil {
			return err
		}
		out.variable(p)
		if err := d.keyAlgorithms(&out); err != nil {
			return err
		}
		rsp, err := tpm2.ReadClock{}.Execute(d.now.tpm)
		if err != nil {
			return fmt.Errorf("tpmdev: read the clock: %w", err)
		}
		t := rsp.CurrentTime
		out.Clock = Clock{Resets: t.ClockInfo.ResetCount, Restarts: t.ClockInfo.RestartCount, Safe: t.ClockInfo.Safe,
			Time: time.Duration(min(t.Time, 1<<40)) * time.Millisecond}
		return nil
	})
	return out, err
}

// fixed takes PT_FIXED (TPM 2.0 Part 2, section 6.13).
func (i *Info) fixed(p map[tpm2.TPMPT]uint32) {
	i.Manufacturer = text(p[tpm2.TPMPTManufacturer])
	i.Vendor = strings.TrimSpace(text(p[tpm2.TPMPTVendorString1]) + text(p[tpm2.TPMPTVendorString2]) + text(p[tpm2.TPMPTVendorString3]) + text(p[tpm2.TPMPTVendorString4]))
	v1, v2 := p[tpm2.TPMPTFirmwareVersion1], p[tpm2.TPMPTFirmwareVersion2]
	i.Firmware = fmt.Sprintf("%d.%d.%d.%d", v1>>16, v1&0xffff, v2>>16, v2&0xffff)
	i.Revision = fmt.Sprintf("%d.%02d", p[tpm2.TPMPTRevision]/100, p[tpm2.TPMPTRevision]%100)
}

// variable takes PT_VAR (same; TPMA_PERMANENT and TPMA_STARTUP_CLEAR are in sections 8.6 and 8.7).
func (i *Info) variable(p map[tpm2.TPMPT]uint32) {
	permanent, startup := p[tpm2.TPMPTPermanent], p[tpm2.TPMPTStartupClear]
	i.OwnerAuth, i.EndorsementAuth, i.LockoutAuth = permanent&1 != 0, permanent&2 != 0, permanent&4 != 0
	i.StorageEnabled, i.EndorsementOn = startup&2 != 0, startup&4 != 0
	i.Lockout = Lockout{InLockout: permanent&(1<<9) != 0, Failures: p[tpm2.TPMPTLockoutCounter], MaxFailures: p[tpm2.TPMPTMaxAuthFail],
		Interval: p[tpm2.TPMPTLockoutInterval], Recovery: p[tpm2.TPMPTLockoutRecovery]}
}

func (d *Device) keyAlgorithms(out *Info) error {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapAlgs, Property: uint32(tpm2.TPMAlgRSA), PropertyCount: 64}.Execute(d.now.tpm)
	if err != nil {
		return fmt.Errorf("tpmdev: list algorithms: %w", err)
	}
	list, err := rsp.CapabilityData.Data.Algorithms()
	if err != nil {
		return fmt.Errorf("tpmdev: list algorithms: %w", err)
	}
	out.Keys = []string{}
	for _, a := range list.AlgProperties {
		switch a.Alg {
		case tpm2.TPMAlgRSA:
			out.Keys = append(out.Keys, "rsa")
		case tpm2.TPMAlgECC:
			out.Keys = append(out.Keys, "ecc")
		default: // hashes, schemes and modes
		}
	}
	return nil
}

// text is a property that holds up to four characters; others than printable ones are shown as '?'.
func text(v uint32) string {
	b := bytes.TrimRight(binary.BigEndian.AppendUint32(nil, v), "\x00")
	for i := range b {
		if b[i] < ' ' || b[i] > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}

// KeptAK is the attestation key kept in dir, as AK gives it, but never makes one: where
// there is none the error is fs.ErrNotExist. Its type is what it is, whatever Options say.
func (d *Device) KeptAK(ctx context.Context, dir string) (AK, error) {
	path := filepath.Join(dir, AKFile)
	if _, err := os.Stat(path); err != nil {
		return AK{}, &fs.PathError{Op: "read attestation key", Path: path, Err: fs.ErrNotExist}
	}
	k, err := readAK(path)
	if err != nil {
		return AK{}, err
	}
	return k, d.do(ctx, func() error {
		_, _, err := d.attestation(k)
		return hint(err, path)
	})
}
