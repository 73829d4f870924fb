package watchfile

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is how long after the first change files are read again: editors and Kubernetes' volume updates touch several
	// in a row.
	settle = 300 * time.Millisecond
	// Look is how often files are compared with what was read. The kernel tells of changes at once, but not of a folder that is
	// replaced above the ones that are watched.
	Look = 5 * time.Second
)

// Watcher has files read again when one of them may have changed.
type Watcher struct {
	notify *fsnotify.Watcher
	failed func(error)
	done   chan struct{}

	// Of its goroutine alone.
	last    Sighting
	paths   map[string]bool // of last
	folders map[string]bool // that the kernel was asked to watch
}

// Watch watches what a reading has looked at until Close. reread reads again, and returns what it has looked at; from then on that is watched.
// failed is told of what goes wrong meanwhile. Both are called by one goroutine.
func Watch(last Sighting, reread func() Sighting, failed func(error)) (*Watcher, error) {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch files: %w", err)
	}
	w := &Watcher{notify: notify, failed: failed, done: make(chan struct{})}
	go w.run(last, reread)
	return w, nil
}

func (w *Watcher) run(last Sighting, reread func() Sighting) {
	defer close(w.done)
	ticker := time.NewTicker(Look)
	defer ticker.Stop()
	due := w.arm(last) // nil while nothing has changed
	for {
		select {
		case event, open := <-w.notify.Events:
			if !open {
				return
			}
			if due == nil && w.concerns(event) {
				due = time.After(settle)
			}
		case err, open := <-w.notify.Errors:
			if !open {
				return
			}
			w.failed(err)
			due = time.After(settle) // events may be lost: look at the files
		case <-ticker.C:
			if due == nil && w.last.Outdated() {
				due = time.After(settle)
			}
		case <-due:
			due = w.arm(reread())
		}
	}
}

// arm watches the folders that hold the files, and the folders among them: files are replaced by renaming, so that a
// watch of the file would be lost. A folder may have been replaced too, and a watch stays with the one that was there before: all are made
// anew. What changed meanwhile is due.
func (w *Watcher) arm(last Sighting) <-chan time.Time {
	for folder := range w.folders {
		_ = w.notify.Remove(folder) // it may be gone, and its watch with it
	}
	w.last, w.paths, w.folders = last, map[string]bool{}, map[string]bool{}
	for _, path := range last.files {
		path = filepath.Clean(path)
		w.paths[path] = true
		w.folders[filepath.Dir(path)] = true
		if IsFolder(path) {
			w.folders[path] = true
		}
	}
	for folder := range w.folders {
		if err := w.notify.Add(folder); err != nil && !errors.Is(err, fsnotify.ErrClosed) {
			w.failed(fmt.Errorf("watch %s: %w", folder, err))
		}
	}
	if last.Outdated() {
		return time.After(settle)
	}
	return nil
}

// concerns reports whether an event is about a configured file, about a file in a
// configured folder, about a watched folder itself, or about a link through which Kubernetes swaps a whole volume
// ("..data"). The log and the state that the plugin itself writes beside them are not.
func (w *Watcher) concerns(e fsnotify.Event) bool {
	name := filepath.Clean(e.Name)
	return e.Op != fsnotify.Chmod &&
		(w.paths[name] || w.paths[filepath.Dir(name)] || w.folders[name] || strings.HasPrefix(filepath.Base(name), ".."))
}

// Close ends the watching, and waits for a reading under way.
func (w *Watcher) Close() error {
	err := w.notify.Close()
	<-w.done
	return err
}
