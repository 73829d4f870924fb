// Package tpmdev is the only door to a TPM: it finds the endorsement key, keeps the
// attestation key, activates credentials, quotes PCRs and handles the asset tag's NV
// index. It decides nothing; what it returns is evidence.
//
// # Sessions
//
// Every command that carries a secret or authorises something runs in an HMAC session
// salted with the EK (TPM 2.0 Part 1, section 19.6.8), so that somebody on the bus between
// processor and TPM neither reads the activated secret or an authorisation nor changes a
// command or its answer unnoticed:
//
//   - in a salted session with encrypted parameters: making the AK, TPM2_ActivateCredential, TPM2_Quote, TPM2_NV_Certify;
//   - in a salted session as owner: defining, writing, locking and deleting the tag's index;
//   - in none: reading public areas, capabilities, PCR values and EK certificates, extending a PCR, saving,
//     loading and flushing contexts. They carry no secret, and what is read is judged by a quote's digest, a
//     name or a certificate on the server; no session could add to that. A wrong answer costs
//     an attestation, which somebody on the bus can always have;
//   - with the empty password: making an EK, using an EK of the high range, and the policy of the low
//     range, where the hierarchy has no authorisation. One that it has is proved in a salted session.
//
// The salt is encrypted to the EK that the machine presents to servers. It is recorded with
// the AK on first use, and another one is refused ([ErrOtherTPM]): an interposer who
// comes later cannot put his own key in its place. One who was there from the first
// command on can, but then his key is what the agent presents, since a certificate goes along
// only with the very key that it names; without a certificate of that key, or without
// its hash in the inventory, servers refuse it. What is left: an operator who takes the
// hash of an EK into the inventory, or signs a tag for it, on a machine whose bus was tapped then.
// Take it from the maker's certificate, or at the factory.
//
// # Handles
//
// Nothing is left in the TPM: keys are made as primary keys, which take no storage, and
// flushed at the end of each call. One call runs at a time.
package tpmdev

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"sync"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Options of a device. The zero value fits a TPM as it comes from the factory.
type Options struct {
	OwnerAuth       []byte // owner hierarchy, usually empty
	EndorsementAuth []byte // endorsement hierarchy, usually empty
	// AKType is the type of the attestation key; "" is ECDSA.
	AKType AKType
	// Template names the EK to use ("L-1" … "H-6" of the TCG EK Credential Profile);
	// "" takes the first one that has a certificate, else the first that the TPM can make.
	Template string
}

// Device is one TPM. Its methods may be called from several goroutines.
type Device struct {
	path string
	opts Options

	mu  sync.Mutex
	now operation    // the running operation
	ek  *Endorsement // chosen on first use
	// saved are the primary keys made so far, by template. A hardware TPM takes up to a
	// minute to derive an RSA key, and loads a saved one at once.
	saved map[string]savedKey

	unusable struct {
		sync.Mutex
		why map[uint32]string // by NV index
	}
}

// Open checks that path is a TPM that answers: a character device with a resource
// manager (/dev/tpmrm0) or a Unix socket that takes raw TPM commands (swtpm's server
// socket). The connection is made anew for each call, so there is little to close.
func Open(path string) (*Device, error) { return OpenOptions(path, Options{}) }

// OpenOptions is Open with options.
func OpenOptions(path string, opts Options) (*Device, error) {
	return OpenContext(context.Background(), path, opts)
}

// OpenContext is Open with options, and a context that bounds how long the TPM may take
// to answer.
func OpenContext(ctx context.Context, path string, opts Options) (*Device, error) {
	d := &Device{path: path, opts: opts, saved: map[string]savedKey{}}
	var err error
	if d.opts.AKType, err = ParseAKType(string(opts.AKType)); err != nil {
		return nil, err
	}
	if opts.Template != "" && d.template() == nil {
		return nil, fmt.Errorf("tpmdev: EK template %q is unknown", opts.Template)
	}
	if _, err := d.Banks(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// Close ends the use of the device. A call that is under way ends first.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.path = ""
	return nil
}

func (d *Device) template() *ek.Template {
	for _, t := range ek.Templates() {
		if t.Name == d.opts.Template {
			return &t
		}
	}
	return nil
}

// operation is the state of one call: the link, and what must be flushed at its end.
type operation struct {
	tpm     transport.TPM
	handles []tpm2.TPMHandle
}

// do runs one operation with the TPM to itself, and flushes what it leaves.
func (d *Device) do(ctx context.Context, f func() error) (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.path == "" {
		return errors.New("tpmdev: the device is closed")
	}
	l, err := dial(ctx, d.path)
	if err != nil {
		return err
	}
	d.now = operation{tpm: l}
	defer func() {
		flushErr := d.flush()
		d.now = operation{}
		if closeErr := l.close(); err == nil {
			err = errors.Join(flushErr, closeErr)
		}
	}()
	if l.stream {
		if err := d.flushLeftovers(); err != nil {
			return err
		}
	}
	return guard(f)
}

// guard turns a panic into an error. The TPM library reads answers by reflection and
// panics on some that no TPM gives: whoever sits on the bus must not be able to end the agent.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("tpmdev: the TPM's answer cannot be read: %v", p)
		}
	}()
	return f()
}

// keep remembers a handle for flushing.
func (d *Device) keep(h tpm2.TPMHandle) { d.now.handles = append(d.now.handles, h) }

// flush flushes in reverse order of creation.
func (d *Device) flush() error {
	var errs []error
	for i := len(d.now.handles) - 1; i >= 0; i-- {
		if _, err := (tpm2.FlushContext{FlushHandle: d.now.handles[i]}).Execute(d.now.tpm); err != nil {
			errs = append(errs, fmt.Errorf("tpmdev: flush 0x%08x: %w", d.now.handles[i], err))
		}
	}
	d.now.handles = nil
	return errors.Join(errs...)
}

// flushLeftovers clears what a client that was killed in the middle of a call left in a
// TPM behind a raw socket: such a TPM has room for three keys and no resource manager.
// Nobody else can have live handles there, since it serves one connection at a time and
// this package flushes at the end of each.
func (d *Device) flushLeftovers() error {
	for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} { // transient, HMAC, policy
		handles, err := d.handles(first)
		if err != nil {
			return err
		}
		for _, h := range handles {
			if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(d.now.tpm); err != nil {
				return fmt.Errorf("tpmdev: flush leftover 0x%08x: %w", h, err)
			}
		}
	}
	return nil
}

// handles lists up to 64 handles of the type of first, from first on.
func (d *Device) handles(first uint32) ([]tpm2.TPMHandle, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(d.now.tpm)
	if err != nil {
		return nil, fmt.Errorf("tpmdev: list handles from 0x%08x: %w", first, err)
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return nil, fmt.Errorf("tpmdev: list handles from 0x%08x: %w", first, err)
	}
	return list.Handle, nil
}

// Banks lists the PCR banks that the TPM has allocated, in its order
// (TPM 2.0 Part 2, section 6.12, TPM_CAP_PCRS).
func (d *Device) Banks(ctx context.Context) (out []nodeclaim.HashAlg, err error) {
	err = d.do(ctx, func() error {
		out, err = d.banks()
		return err
	})
	return out, err
}

func (d *Device) banks() ([]nodeclaim.HashAlg, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, PropertyCount: 1}.Execute(d.now.tpm)
	if err != nil {
		return nil, fmt.Errorf("tpmdev: list PCR banks: %w", err)
	}
	list, err := rsp.CapabilityData.Data.AssignedPCR()
	if err != nil {
		return nil, fmt.Errorf("tpmdev: list PCR banks: %w", err)
	}
	var out []nodeclaim.HashAlg
	for _, sel := range list.PCRSelections {
		if bank := nodeclaim.HashAlg(sel.Hash); bank.Valid() && anyBit(sel.PCRSelect) {
			out = append(out, bank)
		}
	}
	return out, nil
}

func anyBit(bitmap []byte) bool {
	for _, b := range bitmap {
		if b != 0 {
			return true
		}
	}
	return false
}

// loadedKey is a key in the TPM for the length of one operation.
type loadedKey struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	area   []byte // TPMT_PUBLIC
	public tpm2.TPMTPublic
	key    crypto.PublicKey
}

// primary loads an EK: what was saved of it, else made anew.
func (d *Device) primary(area tpm2.TPMTPublic) (*loadedKey, error) {
	if k := d.restore(area); k != nil {
		return k, nil
	}
	auth, err := d.unsalted()
	if err != nil {
		return nil, err
	}
	return d.create(area, auth)
}

// unsalted authorises the endorsement hierarchy as long as there is no EK to salt a
// session with: with the password where it is empty. One that is not must not cross the bus, so it
// is proved in a session salted with a throw-away key of the null hierarchy. Who answers
// in the TPM's place at that moment can guess at it, and reads nothing.
func (d *Device) unsalted() (tpm2.Session, error) {
	if len(d.opts.EndorsementAuth) == 0 {
		return tpm2.PasswordAuth(nil), nil
	}
	var errs []error
	for _, area := range []tpm2.TPMTPublic{tpm2.ECCSRKTemplate, tpm2.RSASRKTemplate} {
		rsp, err := tpm2.CreatePrimary{
			PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHNull, Auth: tpm2.PasswordAuth(nil)},
			InPublic:      tpm2.New2B(area),
		}.Execute(d.now.tpm)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		d.keep(rsp.ObjectHandle)
		k, err := newLoadedKey(rsp.ObjectHandle, rsp.Name, rsp.OutPublic)
		if err != nil {
			return nil, err
		}
		session, err := d.salt(k, d.opts.EndorsementAuth)
		if err != nil {
			return nil, err
		}
		return session, d.release(k.handle)
	}
	return nil, fmt.Errorf("tpmdev: a key of the null hierarchy: %w", errors.Join(errs...))
}

// create makes a primary key in the endorsement hierarchy, and saves it.
func (d *Device) create(area tpm2.TPMTPublic, auth tpm2.Session) (*loadedKey, error) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: auth},
		InPublic:      tpm2.New2B(area),
	}.Execute(d.now.tpm)
	if err != nil {
		return nil, fmt.Errorf("tpmdev: create primary key in the endorsement hierarchy: %w", err)
	}
	d.keep(rsp.ObjectHandle)
	k, err := newLoadedKey(rsp.ObjectHandle, rsp.Name, rsp.OutPublic)
	if err == nil {
		d.save(area, k)
	}
	return k, err
}

// savedKey is a key's context, which only the TPM that saved it, and only until its next
// reset, loads again (TPM 2.0 Part 1, section 30).
type savedKey struct {
	context tpm2.TPMSContext
	key     loadedKey
}

// save saves a key's context; one that the TPM does not save is made anew each time.
func (d *Device) save(area tpm2.TPMTPublic, k *loadedKey) {
	rsp, err := tpm2.ContextSave{SaveHandle: k.handle}.Execute(d.now.tpm)
	if err == nil {
		d.saved[string(tpm2.Marshal(area))] = savedKey{context: rsp.Context, key: *k}
	}
}

// restore loads a saved key, or gives nil where there is none that the TPM takes. Who is
// on the bus may have another object loaded in its place: then the session that uses it,
// which is bound to the name known from before, fails.
func (d *Device) restore(area tpm2.TPMTPublic) *loadedKey {
	template := string(tpm2.Marshal(area))
	s, ok := d.saved[template]
	if !ok {
		return nil
	}
	rsp, err := tpm2.ContextLoad{Context: s.context}.Execute(d.now.tpm)
	if err != nil {
		delete(d.saved, template)
		return nil
	}
	d.keep(rsp.LoadedHandle)
	k := s.key
	k.handle = rsp.LoadedHandle
	return &k
}

// newLoadedKey takes a key that the TPM answered with. The name that stands for it in
// every command from now on is that of the area that was read, not what the answer says besides.
func newLoadedKey(handle tpm2.TPMHandle, name tpm2.TPM2BName, area tpm2.TPM2BPublic) (*loadedKey, error) {
	public, err := area.Contents()
	if err != nil {
		return nil, fmt.Errorf("tpmdev: public area of key 0x%08x: %w", handle, err)
	}
	own, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, fmt.Errorf("tpmdev: name of key 0x%08x: %w", handle, err)
	}
	if !bytes.Equal(own.Buffer, name.Buffer) {
		return nil, fmt.Errorf("tpmdev: key 0x%08x is named %x, its public area %x: the TPM's answer was changed", handle, name.Buffer, own.Buffer)
	}
	key, err := tpm2.Pub(*public)
	if err != nil {
		return nil, fmt.Errorf("tpmdev: key 0x%08x: %w", handle, err)
	}
	return &loadedKey{handle: handle, name: name, area: area.Bytes(), public: *public, key: key}, nil
}
