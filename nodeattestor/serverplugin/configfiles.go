package serverplugin

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/keelson-project/keelson/boundedfile"
)

// maxFile bounds every file that the configuration names, in bytes.
const maxFile = 32 << 20

// expand replaces a directory by its files that have one of the suffixes, sorted.
func (b *builder) expand(key string, paths []string, suffixes ...string) []string {
	var out []string
	for _, path := range paths {
		if !isFolder(path) {
			out = append(out, path) // read reports what is wrong with it
			continue
		}
		b.note(path)
		entries, err := os.ReadDir(path)
		if err != nil {
			b.problems.Add(key, "%v", err)
		}
		n := len(out)
		for _, e := range entries {
			if !e.IsDir() && endsIn(e.Name(), suffixes) {
				out = append(out, filepath.Join(path, e.Name()))
			}
		}
		if len(out) == n {
			b.problems.Add(key, "directory %s has no file that ends in %s", path, strings.Join(suffixes, " or "))
		}
	}
	return out
}

// endsIn tells whether a file's name ends in one of the suffixes, in letters of any case.
func endsIn(name string, suffixes []string) bool {
	return slices.Contains(suffixes, strings.ToLower(filepath.Ext(name)))
}

// noteUnread remembers which files of folders expand leaves out; hidden ones, which Kubernetes' volumes have, are nobody's mistake.
func (b *builder) noteUnread(paths []string, suffixes ...string) {
	for _, path := range paths {
		if !isFolder(path) {
			continue
		}
		entries, _ := os.ReadDir(path) // expand has told an error
		for _, e := range entries {
			if !e.IsDir() && !strings.HasPrefix(e.Name(), ".") && !endsIn(e.Name(), suffixes) {
				b.unread = append(b.unread, filepath.Join(path, e.Name()))
			}
		}
	}
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// sighting is what a reading of the files that a configuration names has looked at.
type sighting struct {
	files []string               // and folders
	seen  map[string]fs.FileInfo // what they were just before they were read; nothing of one that was not there
}

// note remembers a file or folder as it is before it is read.
func (s *sighting) note(path string) {
	s.files = append(s.files, path)
	if info, err := os.Stat(path); err == nil {
		s.seen[path] = info
	}
}

// outdated reports whether a file is another one than was read, for example because it changed before anybody watched it.
func (s *sighting) outdated() bool {
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

// read reads a file that the configuration names, within maxFile.
func (b *builder) read(key, path string) ([]byte, bool) {
	b.note(path)
	data, err := boundedfile.ReadRegular(path, maxFile)
	if err != nil {
		b.problems.Add(key, "%v", err)
		return nil, false
	}
	return data, true
}
