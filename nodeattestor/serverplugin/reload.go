package serverplugin

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long after the first change files are read again: editors and
// Kubernetes' volume updates touch several in a row.
const settle = 300 * time.Millisecond

// watcher calls back when a file that a configuration names may have changed.
type watcher struct {
	notify *fsnotify.Watcher
	paths  map[string]bool
	done   chan struct{}
}

// watch watches the folders that hold the paths, and the paths that are folders
// themselves: files are replaced by renaming, so that a watch of the file would be lost.
func watch(paths []string, changed func(), failed func(error)) (*watcher, error) {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch files: %w", err)
	}
	w := &watcher{notify: notify, paths: map[string]bool{}, done: make(chan struct{})}
	for _, path := range paths {
		w.paths[filepath.Clean(path)] = true
		if err := errors.Join(notify.Add(filepath.Dir(path)), addFolder(notify, path)); err != nil {
			return nil, errors.Join(fmt.Errorf("watch %s: %w", path, err), notify.Close())
		}
	}
	go w.run(changed, failed)
	return w, nil
}

// addFolder watches a path if it is a folder; a path of another kind is left to its parent.
func addFolder(notify *fsnotify.Watcher, path string) error {
	if !isFolder(path) {
		return nil
	}
	return notify.Add(path)
}

func (w *watcher) run(changed func(), failed func(error)) {
	defer close(w.done)
	var due <-chan time.Time // nil while nothing has changed
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
			failed(err)
			due = time.After(settle) // events may be lost: look at the files
		case <-due:
			due = nil
			changed()
		}
	}
}

// concerns reports whether an event is about a configured file, about a file in a
// configured folder, or about a link through which Kubernetes swaps a whole volume
// ("..data"). The log and the state that the plugin itself writes beside them are not.
func (w *watcher) concerns(e fsnotify.Event) bool {
	name := filepath.Clean(e.Name)
	return e.Op != fsnotify.Chmod &&
		(w.paths[name] || w.paths[filepath.Dir(name)] || strings.HasPrefix(filepath.Base(name), ".."))
}

func (w *watcher) close() error {
	err := w.notify.Close()
	<-w.done
	return err
}

// reload reads the files of the configuration in force again. What cannot be read or is
// wrong changes nothing: the last good files stay in force, and the log says why.
func (p *Plugin) reload() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run == nil {
		return
	}
	c, problems := buildConfig(p.run.text, p.run.trustDomain.Name(), p.clock.now())
	if err := problems.Err(); err != nil {
		p.metrics.reloads.Inc("refused")
		p.log.Error("files changed, but are not usable: the last good ones stay in force", "error", err)
		return
	}
	next := *p.run
	next.config, next.states = c, p.run.states.next()
	p.run = &next
	p.metrics.reloads.Inc("ok")
	p.log.Info("files read anew", "references", len(c.policy.References), "machines", len(c.policy.Anchors.Inventory),
		"roots", len(c.policy.Anchors.Roots), "revoked", len(c.policy.Revoked), "revokedTags", len(c.policy.Tag.Revoked))
}
