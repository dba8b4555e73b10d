package web

import (
	"net/http"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/admin"
)

// Boot images, and who would boot them.

// imagesData is images.html.
type imagesData struct {
	Images  []imageRow
	Missing []api.MissingImage
	// MayDelete: who asks sees all machines, so that one that nobody uses is one.
	MayDelete bool
}

// imageRow is an image, also as delete-image.html has it.
type imageRow struct{ Image api.Image }

// Size is that of its files together, in bytes.
func (r imageRow) Size() int64 {
	size := r.Image.Kernel.Size + r.Image.Initramfs.Size
	for _, more := range []*api.Blob{r.Image.UKI, r.Image.Stub, r.Image.Signed} {
		if more != nil {
			size += more.Size
		}
	}
	return size
}

// Unused reports whether no machine and no cluster would netboot it.
func (r imageRow) Unused() bool { return r.Image.Use.Clusters+r.Image.Use.Machines == 0 }

func (p *Pages) images(r *http.Request) (*page, error) {
	all, err := client.Answer[api.Images](p.api.ListImages(r.Context()))
	if err != nil {
		return nil, err
	}
	d := &imagesData{Missing: all.Missing, MayDelete: mayOperate(r.Context()) && wholeRack(r.Context())}
	for _, img := range all.Items {
		d.Images = append(d.Images, imageRow{img})
	}
	return &page{name: "images", title: "Images", data: d}, nil
}

// image is the one that a path names.
func (p *Pages) image(r *http.Request) (imageRow, error) {
	img, err := client.Answer[api.Image](p.api.GetImage(r.Context(), r.PathValue("version"), r.PathValue("schematic"), r.PathValue("arch")))
	return imageRow{img}, err
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
	if err := client.Done(p.api.DeleteImage(r.Context(), row.Image.Version, r.PathValue("schematic"), row.Image.Arch)); err != nil {
		return nil, err
	}
	return done("Images", "Image "+row.Image.ID+" is removed.", pageLink{"/images", "Images"}), nil
}
