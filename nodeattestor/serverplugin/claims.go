package serverplugin

import (
	"errors"
	"sync"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// claims keep one machine from being bound to two nodes by two attestations at the same moment, each of which finds it
// bound to none. Whoever binds an EK holds it from before it asks where the EK is bound until its result is queued or
// refused; the same node may hold it many times. What two servers do is another matter: design/2026-11-26-one-ek-one-node.md.
type claims struct {
	mu   sync.Mutex
	byEK map[nodeclaim.EKHash]*claim
}

// claim is the node that an EK is about to be bound to.
type claim struct {
	node    string
	holders int
}

var errClaimed = errors.New("another attestation is binding this machine to another node; try again")

// hold claims all EKs of a machine for a node, or none of them; the caller must call release.
func (c *claims) hold(eks []nodeclaim.EKHash, node string) (release func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ek := range eks {
		if held := c.byEK[ek]; held != nil && held.node != node {
			return nil, errClaimed
		}
	}
	if c.byEK == nil {
		c.byEK = map[nodeclaim.EKHash]*claim{}
	}
	for _, ek := range eks {
		if c.byEK[ek] == nil {
			c.byEK[ek] = &claim{node: node}
		}
		c.byEK[ek].holders++
	}
	return func() { c.release(eks) }, nil
}

func (c *claims) release(eks []nodeclaim.EKHash) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ek := range eks {
		if c.byEK[ek].holders--; c.byEK[ek].holders == 0 {
			delete(c.byEK, ek)
		}
	}
}
