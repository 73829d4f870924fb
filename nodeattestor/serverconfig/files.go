package serverconfig

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/keelson-project/keelson/boundedfile"
	"github.com/keelson-project/keelson/spireplugin/watchfile"
)

// maxFile bounds every file that the configuration names, in bytes.
const maxFile = 32 << 20

// expand replaces a directory by its files that have one of the suffixes, sorted.
func (b *builder) expand(key string, paths []string, suffixes ...string) []string {
	var out []string
	for _, path := range paths {
		if !watchfile.IsFolder(path) {
			out = append(out, path) // read reports what is wrong with it
			continue
		}
		b.Note(path)
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
		if !watchfile.IsFolder(path) {
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

// read reads a file that the configuration names, within maxFile.
func (b *builder) read(key, path string) ([]byte, bool) {
	b.Note(path)
	data, err := boundedfile.ReadRegular(path, maxFile)
	if err != nil {
		b.problems.Add(key, "%v", err)
		return nil, false
	}
	return data, true
}
