// Package watchfile has a plugin read its files again when they change.
//
// It protects against files that change between their reading and the watching, that are replaced by renaming (a watch
// stays with the old one), that lie behind the links by which Kubernetes swaps a whole volume, and against events that the
// kernel drops: what was read is compared with what is there, at every change and every few seconds.
package watchfile

import (
	"io/fs"
	"os"
	"slices"
)

// Sighting is what a reading has looked at: files and folders as they were just before. The zero value has seen nothing.
type Sighting struct {
	files []string
	seen  map[string]fs.FileInfo // nothing of a file that was not there
}

// Note remembers a file or folder as it is before it is read.
func (s *Sighting) Note(path string) {
	s.files = append(s.files, path)
	if s.seen == nil {
		s.seen = map[string]fs.FileInfo{}
	}
	if info, err := os.Stat(path); err == nil {
		s.seen[path] = info
	}
}

// Outdated reports whether a file is another one than was read, for example because it changed before anybody watched it.
func (s *Sighting) Outdated() bool {
	return slices.ContainsFunc(s.files, func(path string) bool {
		old, now := s.seen[path], fs.FileInfo(nil)
		if info, err := os.Stat(path); err == nil {
			now = info
		}
		if old == nil || now == nil {
			return (old == nil) != (now == nil)
		}
		return !os.SameFile(old, now) || !old.ModTime().Equal(now.ModTime()) || old.Size() != now.Size()
	})
}

// IsFolder reports whether there is a folder at path.
func IsFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
