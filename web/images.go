package web

import (
	"cmp"
	"context"
	"net/http"
	"slices"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/admin"
)

// Boot images, and who would boot them.

// imagesData is images.html.
type imagesData struct {
	Images  []imageRow
	Missing []imageUse // what machines would netboot and is not here, by id
	// MayDelete: who asks sees all machines, so that one that nobody uses is one.
	MayDelete bool
}

type imageRow struct {
	api.Image
	imageUse
}

// imageUse is who would netboot an image.
type imageUse struct {
	ID       string
	Clusters []string // of those that it is for, sorted
	Machines []string // the first of them
	More     int      // beside those
}

// maxUsers is how many of the machines of an image are named.
const maxUsers = 10

// Size is that of its files together, in bytes.
func (r imageRow) Size() int64 { return r.Kernel.Size + r.Initramfs.Size }

// Users are those who would netboot it.
func (r imageRow) Users() imageUse { return r.imageUse }

// Unused reports whether no machine and no cluster would netboot it.
func (u imageUse) Unused() bool { return len(u.Clusters)+len(u.Machines) == 0 }

func (p *Pages) images(r *http.Request) (*page, error) {
	d, err := p.imagesNow(r.Context())
	if err != nil {
		return nil, err
	}
	return &page{name: "images", title: "Images", data: d}, nil
}

func (p *Pages) imagesNow(ctx context.Context) (*imagesData, error) {
	list, err := client.Answer[api.List[api.Image]](p.api.ListImages(ctx))
	if err != nil {
		return nil, err
	}
	d := &imagesData{Images: make([]imageRow, len(list.Items)), MayDelete: mayOperate(ctx) && wholeRack(ctx)}
	uses := map[string]*imageUse{}
	use := func(id string) *imageUse {
		if uses[id] == nil {
			uses[id] = &imageUse{ID: id}
		}
		return uses[id]
	}
	for c, err := range client.All[api.Cluster](func(after string) (*http.Response, error) {
		return p.api.ListClusters(ctx, client.ListClustersParams{After: after, Limit: api.MaxLimit})
	}) {
		if err != nil {
			return nil, err
		}
		for _, img := range list.Items { // of either architecture
			if img.Version == c.TalosVersion && img.Schematic == c.Schematic {
				use(img.ID).Clusters = append(use(img.ID).Clusters, c.Name)
			}
		}
	}
	for m, err := range client.All[api.Machine](func(after string) (*http.Response, error) {
		return p.api.ListMachines(ctx, client.ListMachinesParams{After: after, Limit: api.MaxLimit})
	}) {
		switch {
		case err != nil:
			return nil, err
		case m.Plan.Image == "":
			continue
		}
		u := use(m.Plan.Image)
		if len(u.Machines) < maxUsers {
			u.Machines = append(u.Machines, m.Name)
		} else {
			u.More++
		}
	}
	for i, img := range list.Items {
		d.Images[i] = imageRow{img, *use(img.ID)}
		delete(uses, img.ID)
	}
	for _, u := range uses {
		d.Missing = append(d.Missing, *u)
	}
	slices.SortFunc(d.Missing, func(a, b imageUse) int { return cmp.Compare(a.ID, b.ID) })
	return d, nil
}

// image is the one that a path names.
func (p *Pages) image(r *http.Request) (imageRow, error) {
	d, err := p.imagesNow(r.Context())
	if err != nil {
		return imageRow{}, err
	}
	id := r.PathValue("version") + "/" + r.PathValue("schematic") + "/" + r.PathValue("arch")
	i := slices.IndexFunc(d.Images, func(row imageRow) bool { return row.Image.ID == id })
	if i < 0 {
		return imageRow{}, &admin.Refusal{Status: http.StatusNotFound, Reason: "There is no image " + id + "."}
	}
	return d.Images[i], nil
}

func (p *Pages) askDeleteImage(r *http.Request) (*page, error) {
	row, err := p.image(r)
	if err != nil {
		return nil, err
	}
	return &page{name: "delete-image", title: "Remove image " + row.Image.ID + "?", data: row}, nil
}

// deleteImage removes one that nobody would netboot.
func (p *Pages) deleteImage(r *http.Request) (*page, error) {
	row, err := p.image(r)
	if err != nil {
		return nil, err
	}
	if !row.Unused() {
		return nil, &admin.Refusal{Status: http.StatusConflict, Reason: "Nothing was removed: " + row.Image.ID + " would be netbooted by machines, or is of a cluster's version. Change those first; provisiond image delete does it all the same."}
	}
	if err := client.Done(p.api.DeleteImage(r.Context(), row.Version, r.PathValue("schematic"), row.Arch)); err != nil {
		return nil, err
	}
	return done("Images", "Image "+row.Image.ID+" is removed.", pageLink{"/images", "Images"}), nil
}
