package watchfile

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestASightingKnowsWhatChangedSince(t *testing.T) {
	for name, change := range map[string]func(file, folder string) error{
		"nothing":           func(string, string) error { return nil },
		"a file is written": func(file, _ string) error { return os.WriteFile(file, []byte("longer"), 0o600) },
		"a file is gone":    func(file, _ string) error { return os.Remove(file) },
		"a file came":       func(file, _ string) error { return os.WriteFile(file+".absent", nil, 0o600) },
		"a folder grew":     func(_, folder string) error { return os.WriteFile(filepath.Join(folder, "b"), nil, 0o600) },
		"a file is replaced": func(file, _ string) error {
			return errors.Join(os.WriteFile(file+".new", []byte("a"), 0o600), os.Rename(file+".new", file))
		},
		"a folder stands in a file's place": func(file, _ string) error {
			return errors.Join(os.Remove(file), os.Mkdir(file, 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file, folder := filepath.Join(dir, "file"), filepath.Join(dir, "folder")
			put(t, file, "a")
			if err := os.Mkdir(folder, 0o700); err != nil {
				t.Fatal(err)
			}
			var s Sighting
			for _, path := range []string{file, folder, file + ".absent"} {
				s.Note(path)
			}
			if err := change(file, folder); err != nil {
				t.Fatal(err)
			}
			if got, want := s.Outdated(), name != "nothing"; got != want {
				t.Errorf("outdated: %t, want %t", got, want)
			}
		})
	}
}

// reader notes one path each time it reads.
func reader(path string, readings chan<- Sighting) func() Sighting {
	return func() Sighting {
		var s Sighting
		s.Note(path)
		readings <- s
		return s
	}
}

func waited(t *testing.T, readings <-chan Sighting, what string) {
	t.Helper()
	select {
	case <-readings:
	case <-time.After(2 * Look):
		t.Fatalf("not read again: %s", what)
	}
}

func TestFilesAreReadAgainHoweverTheyChange(t *testing.T) {
	dir := t.TempDir()
	for _, volume := range []string{"v1", "v2"} { // as Kubernetes lays volumes out: file -> ..data/file, ..data -> v1
		if err := os.Mkdir(filepath.Join(dir, volume), 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dir, volume, "file"), volume)
	}
	path, data := filepath.Join(dir, "file"), filepath.Join(dir, "..data")
	if err := errors.Join(os.Symlink("v1", data), os.Symlink(filepath.Join("..data", "file"), path)); err != nil {
		t.Fatal(err)
	}
	readings := make(chan Sighting, 8)
	var first Sighting
	first.Note(path)
	put(t, path, "before anybody watches")
	w, err := Watch(first, reader(path, readings), func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	waited(t, readings, "it changed between reading and watching")
	if err := errors.Join(os.Symlink("v2", data+".new"), os.Rename(data+".new", data)); err != nil {
		t.Fatal(err)
	}
	waited(t, readings, "the volume was swapped")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	waited(t, readings, "it was taken away")
	put(t, path+".tmp", "x")
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
	waited(t, readings, "it was replaced")
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	put(t, path, "after Close")
	select {
	case <-readings:
		t.Error("a closed watcher reads on")
	case <-time.After(2 * settle):
	}
}

func TestAFolderThatIsReplacedAboveIsSeen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "above", "below", "file")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, path, "old")
	readings := make(chan Sighting, 8)
	var first Sighting
	first.Note(path)
	w, err := Watch(first, reader(path, readings), func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other", "below")
	if err := os.MkdirAll(other, 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(other, "file"), "another")
	err = errors.Join(os.Rename(filepath.Join(dir, "above"), filepath.Join(dir, "old")), os.Rename(filepath.Join(dir, "other"), filepath.Join(dir, "above")))
	if err != nil {
		t.Fatal(err)
	}
	waited(t, readings, "a folder two above was replaced")
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}
