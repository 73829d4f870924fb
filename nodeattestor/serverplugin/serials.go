package serverplugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// serials keep the highest tag serial that each EK has shown, where no Kubernetes API keeps it: root on a machine can put
// an older tag back, which somebody signed once. They are one server's.
type serials struct {
	path string // of their file; "" keeps them in memory alone

	mu   sync.Mutex
	byEK map[string]uint64 // hex EK hash -> serial
}

// maxSerials bounds the file in bytes: some hundred thousand machines.
const maxSerials = 16 << 20

// openSerials reads the file at path, strictly; one that is not there holds nothing. What an earlier configuration knew stays known.
func openSerials(path string, earlier *serials) (*serials, error) {
	if earlier != nil && earlier.path == path {
		return earlier, nil
	}
	s := &serials{path: path, byEK: map[string]uint64{}}
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

func (s *serials) load() error {
	data, err := readUpTo(s.path, maxSerials)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	const advice = "remove the file to believe any tag once more"
	if err := json.Unmarshal(data, &s.byEK); err != nil {
		return fmt.Errorf("%s: %w; %s", s.path, err, advice)
	}
	if s.byEK == nil {
		return fmt.Errorf("%s holds no object; %s", s.path, advice)
	}
	for ek, serial := range s.byEK {
		if _, err := nodeclaim.ParseEKHash(ek); err != nil || serial == 0 {
			return fmt.Errorf("%s: %q with serial %d is no EK hash with its highest serial; %s", s.path, ek, serial, advice)
		}
	}
	return nil
}

// highest is the highest serial that an EK has shown, 0 when it has shown none.
func (s *serials) highest(ek nodeclaim.EKHash) uint64 {
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byEK[ek.String()]
}

// raise keeps serials that are higher than those known, in the file first. An error changes nothing.
func (s *serials) raise(shown map[string]uint64) error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := maps.Clone(s.byEK)
	for ek, serial := range shown {
		next[ek] = max(serial, next[ek])
	}
	if maps.Equal(next, s.byEK) {
		return nil
	}
	if s.path != "" {
		data, err := json.Marshal(next)
		if err == nil {
			err = replaceFile(s.path, data)
		}
		if err != nil {
			return fmt.Errorf("tag serials: %w", err)
		}
	}
	s.byEK = next
	return nil
}

// replaceFile replaces a file atomically, and waits until the disk has it.
func replaceFile(path string, data []byte) (err error) {
	temporary := path + ".new"
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
