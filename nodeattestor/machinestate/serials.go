package machinestate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"sync"

	"github.com/keelson-project/keelson/boundedfile"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Serials are the highest tag serial that each EK has shown, where no Kubernetes API keeps it: root on a machine can
// put an older tag back, which somebody signed once. They are one server's.
type Serials struct {
	path string // of their file; "" keeps them in memory alone

	mu   sync.Mutex
	byEK map[string]uint64 // hex EK hash -> serial
}

// maxSerials bounds the file in bytes: some hundred thousand machines.
const maxSerials = 16 << 20

// OpenSerials reads the file at path, strictly; one that is not there holds nothing, and path "" names none. What an
// earlier configuration knew stays known; earlier may be nil.
func OpenSerials(path string, earlier *Serials) (*Serials, error) {
	if earlier != nil && earlier.path == path {
		return earlier, nil
	}
	s := &Serials{path: path, byEK: map[string]uint64{}}
	if path != "" {
		if err := s.load(); err != nil {
			return nil, fmt.Errorf("tag serials: %w", err)
		}
	}
	if earlier == nil {
		return s, nil
	}
	earlier.mu.Lock()
	defer earlier.mu.Unlock()
	return s, s.raise(earlier.byEK)
}

func (s *Serials) load() error {
	data, err := boundedfile.ReadRegular(s.path, maxSerials)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.byEK, err = parseSerials(data); err != nil {
		return fmt.Errorf("%s: %w; remove the file to believe any tag once more", s.path, err)
	}
	return nil
}

// parseSerials reads the content of the file.
func parseSerials(data []byte) (map[string]uint64, error) {
	var byEK map[string]uint64
	if err := json.Unmarshal(data, &byEK); err != nil {
		return nil, err
	}
	if byEK == nil {
		return nil, errors.New("it holds no object")
	}
	for ek, serial := range byEK {
		if _, err := nodeclaim.ParseEKHash(ek); err != nil || serial == 0 {
			return nil, fmt.Errorf("%.64q with serial %d is no EK hash with its highest serial", ek, serial)
		}
	}
	return byEK, nil
}

// Raise keeps a tag's serial for all EKs of its machine, given in hex, where it is higher than what is known of them, in
// the file first, and returns the highest that any of them has shown. Serial 0 keeps nothing: it asks. An error changes
// nothing. Nil Serials know and keep nothing.
func (s *Serials) Raise(serial uint64, eks ...string) (highest uint64, err error) {
	if s == nil {
		return serial, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	shown := map[string]uint64{}
	for _, ek := range eks {
		if serial > 0 {
			shown[ek] = serial
		}
		highest = max(highest, serial, s.byEK[ek])
	}
	if err := s.raise(shown); err != nil {
		return 0, err
	}
	return highest, nil
}

// raise keeps serials that are higher than those known. The caller holds the lock.
func (s *Serials) raise(shown map[string]uint64) error {
	next := maps.Clone(s.byEK)
	for ek, serial := range shown {
		next[ek] = max(serial, next[ek])
	}
	if maps.Equal(next, s.byEK) {
		return nil
	}
	if s.path != "" {
		data, err := json.Marshal(next)
		if err == nil && len(data) > maxSerials {
			err = fmt.Errorf("%d machines take %d bytes, more than the %d that are read again", len(next), len(data), maxSerials)
		}
		if err == nil {
			err = boundedfile.Replace(s.path, data, 0o600)
		}
		if err != nil {
			return fmt.Errorf("tag serials: %w", err)
		}
	}
	s.byEK = next
	return nil
}
