package reference

import (
	"errors"
	"sync"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/imasig"
)

// signed tells, by nil, that one of the policy's keys signed the digest of an entry whose path is not listed. A listed
// path has its digests and nothing else: a signer's older version of it is signed too.
//
// The signature is the node's to choose, and so is what verifying it costs: what verified is remembered, and after
// budget has run out nothing else is verified.
func (p *imaPolicy) signed(v *ima.View, budget *int) error {
	if len(p.keys) == 0 {
		return errNoKeys
	}
	if len(v.Signature) == 0 {
		return errUnsigned
	}
	alg, sum, verity := v.Digest()
	s, err := imasig.Parse(v.Signature)
	if err != nil {
		return err
	}
	err = errOtherKey
	for i, k := range p.keys {
		if !k.Named(s) {
			continue
		}
		if p.vouched.has(i, alg, sum, verity) {
			return nil
		}
		if *budget <= 0 {
			return errBudget
		}
		if err = k.Verify(s, imasig.Digest{Alg: string(alg), Sum: sum, Verity: verity}); err == nil {
			p.vouched.add(i, alg, sum, verity)
			return nil
		}
		*budget--
	}
	return err
}

// maxBadSignatures is how many signatures of one list may be verified in vain.
const maxBadSignatures = 100

var (
	errNoKeys   = errors.New("the set has no signature keys")
	errUnsigned = errors.New("it has no signature")
	errOtherKey = errors.New("its signature names a key that the set does not have")
	errBudget   = errors.New("too many signatures of the list did not verify; this one was not looked at")
)

// vouched remembers which digests the keys are known to have signed. Only what verified is in it, so a node can add nothing
// but what a trusted signer signed. It is bounded: when the newer half is full, the older is forgotten.
type vouched struct {
	mu         sync.Mutex
	newer, old map[string]struct{}
}

// maxVouched bounds each half, some 100 bytes a digest. What one machine measures of one signer's files should fit into
// one half, or each attestation verifies them anew.
const maxVouched = 1 << 17

func newVouched() *vouched { return &vouched{newer: map[string]struct{}{}} }

// appendVouched is the name of a fact: which key, what kind of digest, the digest. An algorithm's name has no NUL.
func appendVouched(to []byte, key int, alg, sum []byte, verity bool) []byte {
	kind := byte(0)
	if verity {
		kind = 1
	}
	return append(append(append(append(to, byte(key), kind), alg...), 0), sum...) //nolint:gosec // at most maxSignatureKeys.
}

func (c *vouched) has(key int, alg, sum []byte, verity bool) bool {
	var room [128]byte
	name := appendVouched(room[:0], key, alg, sum, verity)
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.newer[string(name)]; ok {
		return true
	}
	if _, ok := c.old[string(name)]; !ok {
		return false
	}
	c.put(string(name))
	return true
}

func (c *vouched) add(key int, alg, sum []byte, verity bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.put(string(appendVouched(nil, key, alg, sum, verity)))
}

func (c *vouched) put(name string) {
	if len(c.newer) >= maxVouched {
		c.newer, c.old = map[string]struct{}{}, c.newer
	}
	c.newer[name] = struct{}{}
}
