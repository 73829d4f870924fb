package admission

import (
	"errors"
	"sync"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// EKLock keeps one machine from being bound to two nodes by two attestations at the same moment, each of which finds it
// bound to none. Whoever binds an EK holds it from before he asks where the EK is bound until the result is queued or
// refused; the same node may hold it many times. The zero value is ready for use. What two servers do is another
// matter: ../serverplugin/design/2026-11-26-one-ek-one-node.md.
type EKLock struct {
	mu   sync.Mutex
	byEK map[nodeclaim.EKHash]*claim
}

// claim is the node that an EK is about to be bound to.
type claim struct {
	node    string
	holders int
}

// ErrClaimed means that another attestation is binding one of the EKs to another node.
var ErrClaimed = errors.New("another attestation is binding this machine to another node; try again")

// Hold claims all EKs of a machine for a node, or none of them (ErrClaimed); the caller must call release, once.
func (l *EKLock) Hold(eks []nodeclaim.EKHash, node string) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ek := range eks {
		if held := l.byEK[ek]; held != nil && held.node != node {
			return nil, ErrClaimed
		}
	}
	if l.byEK == nil {
		l.byEK = map[nodeclaim.EKHash]*claim{}
	}
	for _, ek := range eks {
		if l.byEK[ek] == nil {
			l.byEK[ek] = &claim{node: node}
		}
		l.byEK[ek].holders++
	}
	return func() { l.release(eks) }, nil
}

func (l *EKLock) release(eks []nodeclaim.EKHash) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ek := range eks {
		if l.byEK[ek].holders--; l.byEK[ek].holders == 0 {
			delete(l.byEK, ek)
		}
	}
}
